"""Containers: a user id without a name, and no home, or one that cannot be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tree import ROOT

from vamf import cache

NAMELESS = """
import os, sys
from jobs import cli, train
os.setgroups([])
os.setgid(12345)
os.setuid(12345)
sys.argv = ["train", "digits", "--dry-run"]
os.environ["HOME"] = "/nonexistent"
cli.start(train.main)
del os.environ["HOME"]
cli.start(train.main)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_user_without_a_home_is_given_the_name_of_the_variable() -> None:
    known = {k: v for k, v in os.environ.items() if k not in ("USER", "LOGNAME")}
    done = subprocess.run(
        [sys.executable, "-c", NAMELESS],
        env=known | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout.count('"steps"') == 1  # what a home that is not there does not hinder
    assert done.stderr == (
        "error: HOME must name a folder, in which libraries keep files; user 12345 has none\n"
    )


def test_a_cache_needs_no_home_where_its_folder_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setenv("VAMF_CACHE", str(tmp_path))
    assert cache.folder() == tmp_path
    monkeypatch.delenv("VAMF_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(ValueError, match="HOME must name a folder"):
        cache.folder()
