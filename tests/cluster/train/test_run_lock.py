"""What still runs is not resumed, and what a dead process left behind is."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.tiny import TINY

from jobs import train, tune
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.train.run_lock import require_not_running
from vamf.cluster.train.tracked_run import Launch, create, launch, new, resumed
from vamf.errors import StillRunning
from vamf.run_layout import SWEEP
from vamf.store import Store

HOLDER = """
import sys, time
from pathlib import Path
from vamf.cluster.train.run_lock import exclusive
from vamf.store import storage_path
with exclusive(storage_path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def another(place: object) -> Iterator[subprocess.Popen]:
    """Another process that works on it."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(place)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.wait()


def refusal(place: object, process: int) -> str:
    return (
        f"{place} must have ended before it is resumed; it is still running "
        f"(process {process} on host {socket.gethostname()})"
    )


@pytest.fixture
def run(tracking_uri: str, tmp_path: Path) -> Path:
    create(TINY, new(tmp_path / "a", tracking_uri, "digits"))
    return tmp_path / "a"


@pytest.fixture
def search(tmp_path: Path) -> Path:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / SWEEP).write_text("{}")
    return tmp_path / "s"


def reported(job: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        job()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


def test_what_still_runs_is_not_resumed(
    run: Path, search: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, job in ((run, train), (search, tune)):
        with another(folder) as holder:
            argv = ["--resume", str(folder), "--tracking", tracking_uri]
            assert reported(lambda: job.main(argv), capsys) == refusal(folder, holder.pid)  # noqa: B023
            require_not_running(folder.parent)
            holder.send_signal(signal.SIGKILL)
            holder.wait()
        require_not_running(folder)


def test_a_run_is_held_while_it_is_trained(run: Path, tracking_uri: str) -> None:
    def refused(progress: dict) -> None:
        with pytest.raises(ValueError) as raised:
            resumed(run, tracking_uri)
        assert str(raised.value) == refusal(run, os.getpid())
        asked.append(progress["step"])

    asked: list[int] = []
    launch(TINY, new(run, tracking_uri, "digits"), Scaling(), report=refused)
    assert asked
    resumed(run, tracking_uri)
    with another(run), pytest.raises(StillRunning):  # whoever came between the look and the start
        launch(TINY, new(run, tracking_uri, "digits"), Scaling())


def test_a_trial_waits_for_the_process_that_had_it(
    run: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = create(TINY, new(run.parent / "parent", tracking_uri, "digits"))
    trial = Launch(directory=run, uri=tracking_uri, name="t", preset="digits", parent=parent)
    with another(run) as holder:

        def end(seconds: float) -> None:
            holder.kill()
            holder.wait()

        monkeypatch.setattr("time.sleep", end)
        assert launch(TINY, trial, Scaling()).step == TINY.steps
        assert holder.returncode == -signal.SIGKILL


def test_a_run_in_a_store_is_held_on_its_machine() -> None:
    place = Store("s3://bucket/runs/a")
    with another(place) as holder, pytest.raises(StillRunning) as raised:
        require_not_running(place)
    assert str(raised.value) == refusal(place, holder.pid)
    require_not_running(place)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("no folder")
    with pytest.raises(ValueError, match=r"a must be writable; got .*File exists"):
        require_not_running(tmp_path / "a")
