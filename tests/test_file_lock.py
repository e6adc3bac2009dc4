"""Locks of files: one holder at a time, released by its end, and harmless where there are none."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from vamf.file_lock import locked

HOLDER = """
import sys, pathlib
from vamf.file_lock import locked
with locked(pathlib.Path(sys.argv[1]), wait=True) as mine:
    print(mine, flush=True)
    sys.stdin.readline()
"""


def test_a_lock_has_one_holder_and_is_free_again_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, wait=False) as first:
        with locked(path, wait=False) as second:
            assert (first, second) == (True, False)
        with locked(tmp_path / "other", wait=False) as other:
            assert other
    with locked(path, wait=False) as again:
        assert again


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"True\n"
        with locked(path, wait=False) as mine:
            assert not mine
        holder.kill()
        with locked(path, wait=True) as mine:
            assert mine


def test_content_of_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("holder")
    with locked(path, wait=True) as mine:
        assert mine and path.read_text() == "holder"


def test_a_file_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), locked(tmp_path / "missing" / "lock", wait=True):
        pass


@pytest.mark.parametrize("wait", [False, True])
def test_a_file_system_without_locks_is_no_error(
    wait: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "lock", wait=wait) as mine:
        assert mine
