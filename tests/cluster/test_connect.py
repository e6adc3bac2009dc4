"""A cluster that is not there, or cannot be, is one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vamf.cluster import connect
from vamf.cluster.failures import RunFailed, explained, is_final, lost


@pytest.mark.slow
def test_a_cluster_that_cannot_start_here_is_one_line(tmp_path: Path) -> None:
    """Ray's sockets lie in its folder, and a socket's name has at most 107 characters."""
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    ended = subprocess.run(
        [sys.executable, "-m", "jobs.train", "digits", "--scaling.workers", "1", "--name", "a"],
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        | {"RAY_TMPDIR": str(folder), "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = (line for line in ended.stderr.splitlines() if "mlflow.store" not in line)
    assert line.startswith("error: Ray must start on this machine; got ")
    assert "107 bytes" in line
    assert not (tmp_path / "runs" / "a").exists()


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_without_a_cluster_is_one_line(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="RAY_ADDRESS") as caught:
        connect._check(address)
    assert address in str(caught.value) and "\n" not in str(caught.value)


def test_only_what_would_come_again_is_final() -> None:
    for error in (ValueError(), TypeError(), KeyError(), OSError(28, "No space left on device")):
        assert is_final(error), error
    for passing in (RuntimeError("Connection closed by peer"), OSError(5, "I/O"), MemoryError()):
        assert not is_final(passing), passing


def test_a_failure_is_one_line_and_its_traceback_a_file(tmp_path: Path) -> None:
    error = TypeError("a\nb")
    error.add_note("Traceback ...\nTypeError: a\nb")
    told = explained(error, tmp_path)
    assert isinstance(told, RunFailed)
    assert str(told) == f"TypeError: a; traceback in {tmp_path / 'error.txt'}"
    assert (tmp_path / "error.txt").read_text() == "Traceback ...\nTypeError: a\nb\n"
    last = lost({1: RuntimeError("Connection closed by peer\nmore")}, 3, tmp_path)
    assert str(last).startswith(
        "workers failed more than 3 times, the last time rank 1 with "
        "RuntimeError: Connection closed by peer; more in "
    )
