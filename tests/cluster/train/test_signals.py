"""Signals that ask a run to end: it says so, saves its state, and can be resumed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.machine import wait_until
from helpers.tiny import TINY, checkpoint, options, same, tracked

from jobs import cli, train
from vamf import signals
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.train.progress import progress
from vamf.cluster.train.save_request import SaveRequest
from vamf.cluster.train.tracked_run import launch, new
from vamf.signals import Terminated


@pytest.fixture
def heeded() -> Iterator[None]:
    """The signals of the jobs; afterwards those of the tests."""
    numbers = (*signals.HANDLED, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    signals.handle_signals()
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    signals._handling, signals._last = False, None


SIGNALS = {"SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 138}
"""What a shell shows of a program that each of them ended, 128 and its number."""


@pytest.mark.parametrize("name", SIGNALS)
def test_each_signal_has_its_own_status(name: str, heeded: None) -> None:
    os.kill(os.getpid(), getattr(signal, name))
    asked = signals.pending()
    assert isinstance(asked, Terminated) and (str(asked), asked.status) == (name, SIGNALS[name])
    assert signals.pending() is None  # it was asked for once
    assert signals.cause(KeyboardInterrupt()) is asked and signals.cause(ValueError()) is None


def test_a_run_that_is_asked_to_end_keeps_its_state_and_goes_on(
    heeded: None, tracking_uri: str, tmp_path: Path
) -> None:
    """At step 3, between two checkpoints; then as if nothing had happened, bit for bit."""
    whole, ended = tmp_path / "whole", tmp_path / "ended"
    launch(TINY, new(whole, tracking_uri, "digits"), Scaling())

    def ask(progress: dict) -> None:
        if progress["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated, match="SIGTERM"):
        launch(TINY, new(ended, tracking_uri, "digits"), Scaling(), report=ask)
    (run,) = tracked(tracking_uri, ended)
    assert (run.info.status, run.data.tags["error"]) == ("KILLED", "ended by SIGTERM")
    assert checkpoint(ended, 3).load()["step"] == 3
    train.main(["--resume", str(ended), "--tracking", tracking_uri])
    assert same(checkpoint(ended, 6).load(), checkpoint(whole, 6).load())
    (run,) = tracked(tracking_uri, ended)
    assert run.info.status == "FINISHED"


def test_what_takes_longer_than_patience_is_interrupted(
    heeded: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The job ends with one line that names the signal, and the command that goes on."""
    monkeypatch.setattr(signals, "PATIENCE_S", 0.05)

    def endless() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    with pytest.raises(SystemExit) as ended:
        cli.guarded(endless, resume="again")
    assert ended.value.code == 143
    assert capsys.readouterr().err == "error: ended by SIGTERM; to resume: again\n"


def test_what_nohup_ignores_stays_ignored(heeded: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.handle_signals(again=True)
    os.kill(os.getpid(), signal.SIGHUP)
    assert signals.pending() is None


def test_signals_come_back_from_who_took_them(heeded: None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does, with a handler of its own
    signals.handle_signals(again=True)
    os.kill(os.getpid(), signal.SIGTERM)
    assert isinstance(signals.pending(), Terminated)


def test_what_was_prepared_is_waited_for(
    heeded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker, a thread here, clears the request later than a step may take to its end."""
    monkeypatch.setattr(signals, "PATIENCE_S", 0.05)
    request, finished = SaveRequest(tmp_path), threading.Event()

    def work() -> None:
        ours = SaveRequest(tmp_path)
        wait_until(ours.is_made, "the request")
        time.sleep(0.5)
        finished.set()
        ours.clear()

    worker = threading.Thread(target=work)
    worker.start()
    with pytest.raises(Terminated), signals.prepared(request.make, request.is_cleared, 30):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    assert finished.is_set() and request.is_cleared()
    worker.join()


def test_what_is_never_done_is_not_waited_for(
    heeded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "PATIENCE_S", 0.05)
    request = SaveRequest(tmp_path)
    with pytest.raises(Terminated), signals.prepared(request.make, request.is_cleared, 0.3):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    assert not request.is_cleared()
    request.clear()
    assert request.is_cleared() and not request.is_made()


@pytest.mark.slow
def test_a_job_with_workers_ends_by_sigterm(tracking_uri: str, tmp_path: Path) -> None:
    """A real process with a Ray cluster of its own, of which nothing stays but the newest state."""
    directory = tmp_path / "asked"
    settings = options({"steps": 4000, "checkpoint.every": 4000, "evaluation.every": 4000})
    names = ["--storage", str(tmp_path), "--name", "asked", "--tracking", tracking_uri]
    command = [sys.executable, "-m", "jobs.train", "digits", "--scaling.workers", "2"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with (tmp_path / "said").open("w") as said:
        driver = subprocess.Popen(
            [*command, *names, *settings], env=environment, stdout=said, stderr=said
        )
    try:
        wait_until(lambda: driver.poll() is not None or progress(directory) > 2, "a few steps")
        driver.terminate()
        assert driver.wait(60) == 143, (tmp_path / "said").read_text()
    finally:
        driver.kill()
    last = (tmp_path / "said").read_text().splitlines()[-1]
    assert last == f"error: ended by SIGTERM; to resume: python -m jobs.train --resume {directory}"
    (run,) = tracked(tracking_uri, directory)
    assert (run.info.status, run.data.tags["error"]) == ("KILLED", "ended by SIGTERM")
    (saved,) = (directory / "checkpoints").glob("step_*")  # by one of two workers, unasked for
    state = checkpoint(directory, int(saved.name.removeprefix("step_"))).load()
    assert 2 < state["step"] < 4000
    assert not list(directory.glob("ending"))
