"""Several drivers on one search: what they share, who ends it, and what a dead one leaves."""

import fcntl
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from helpers.machine import descendants, kill, wait_until
from helpers.searching import SPACE, begun, raced, without_ray
from helpers.tiny import options
from mlflow import MlflowClient
from optuna.trial import TrialState

from jobs import tune
from vamf.cluster.search import search_runner
from vamf.cluster.search.admission import ALL_TAKEN, Admission
from vamf.cluster.search.budget import Budget, BudgetClock
from vamf.cluster.search.drivers import at_work, turn, working
from vamf.cluster.search.extension import Extension
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.study import DRIVER, open_study, requeue_unfinished, sampler
from vamf.cluster.search.trials import load_trials
from vamf.errors import StillRunning

DONE, RUNNING, WAITING = TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING

ANOTHER = """
import sys, time
from pathlib import Path
import optuna
from vamf.cluster.search.drivers import turn, working
from vamf.cluster.search.saved_search import saved
from vamf.cluster.search.study import DRIVER
from vamf.cluster.search.study_database import database
sweep = saved(Path(sys.argv[1]))
with working(sweep, join=True) as driver:
    with turn(sweep.directory):
        study = optuna.create_study(
            study_name=sweep.name, storage=database(sweep), load_if_exists=True,
            directions=["minimize"] * 2)
        trial = study.ask()
        trial.set_user_attr(DRIVER, driver.name)
        trial.suggest_float("beta.value", 0.0, 1.0)
    print(driver.name, trial.number, flush=True)
    sys.stdin.readline()
"""
"""Another process, which joins a search and starts a trial."""


class Another:
    """A process that has joined a search and runs a trial."""

    def __init__(self, sweep: Sweep) -> None:
        arguments = [sys.executable, "-c", ANOTHER, str(sweep.directory)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdout is not None
        self.name, number = self.process.stdout.readline().split()
        self.trial = int(number)

    def kill(self) -> None:
        kill({self.process.pid})
        self.process.wait()


@contextmanager
def another(sweep: Sweep) -> Iterator[Another]:
    found = Another(sweep)
    try:
        yield found
    finally:
        found.kill()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)


@pytest.fixture
def sweep(here: None, tracking_uri: str, tmp_path: Path) -> Sweep:
    return begun(tmp_path / "s", tracking_uri)


def states(sweep: Sweep) -> list[TrialState]:
    return [trial.state for trial in open_study(sweep).trials]


def parent_status(sweep: Sweep) -> str:
    return str(MlflowClient(sweep.parent.uri).get_run(sweep.parent.run_id).info.status)


def test_no_trial_is_started_twice_and_none_too_many(sweep: Sweep) -> None:
    """Four drivers start what they can at the same time; one of them is the last."""
    sweep = replace(sweep, trials=10)
    started, last = raced(sweep, drivers=4)
    assert sorted(started) == list(range(10))
    assert last.count(True) == 1
    assert states(sweep) == [DONE] * 10


def test_a_driver_leaves_the_trials_of_others_and_takes_those_of_the_dead(sweep: Sweep) -> None:
    with another(sweep) as other:
        with working(sweep, join=True) as driver, turn(sweep.directory):
            assert driver.joined and driver.others() == {other.name}
            assert requeue_unfinished(sweep, driver.others()) == []
            assert states(sweep) == [RUNNING]
            other.kill()
            assert driver.others() == set()
            assert requeue_unfinished(sweep, driver.others()) == [other.trial]
        assert states(sweep) == [WAITING]


def test_a_search_on_which_others_work_is_joined_or_nothing(
    sweep: Sweep, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with another(sweep) as other:
        with pytest.raises(SystemExit):
            tune.main(["--resume", str(sweep.directory), "--tracking", tracking_uri])
        (line,) = capsys.readouterr().err.splitlines()
        assert line == (
            f"error: {sweep.directory} must have ended before it is resumed; it is still running "
            f"(process {other.process.pid} on host {socket.gethostname()}); python -m jobs.tune "
            f"--resume {sweep.directory} --join works on it at the same time"
        )
        with pytest.raises(StillRunning):
            search_runner.run(SPACE, sweep)
        for extension in (Extension(trials=9), Extension(seeds=2)):
            with pytest.raises(ValueError, match="must stay as they are while others work on it"):
                search_runner.resumed(sweep.directory, tracking_uri, extension, join=True)
        hours = Extension(hours=2.0)  # of this command alone
        joined = search_runner.resumed(sweep.directory, tracking_uri, hours, join=True)
        assert joined.budget == Budget(hours=2.0)
    search_runner.resumed(sweep.directory, tracking_uri)


def test_who_ends_before_others_publishes_nothing_and_the_last_one_all(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    with working(sweep, join=True) as other:
        with turn(sweep.directory):
            study = optuna.create_study(
                study_name=sweep.name, storage=sweep.storage, directions=["minimize"] * 2
            )
            for point in SPACE.POINTS:
                study.enqueue_trial(dict(point))
            study.ask().set_user_attr(DRIVER, other.name)
        found, files = search_runner.run(SPACE, sweep, join=True)
        assert [trial.number for trial in found.trials] == [1] and files == {}
        assert states(sweep) == [RUNNING, DONE]
        assert parent_status(sweep) == "RUNNING"
        assert capsys.readouterr().out.endswith(
            "nothing is left to start; others still work on the search, and the last writes its "
            "results\n"
        )
    found, files = search_runner.run(SPACE, sweep)
    assert len(found.complete) == 2 and files
    assert parent_status(sweep) == "FINISHED"


@pytest.mark.slow
def test_what_a_killed_driver_leaves_another_one_ends(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it was killed when all trials were taken."""
    with another(sweep) as other:
        monkeypatch.setattr("ray.tune.report", lambda figures: other.kill())
        found, files = search_runner.run(SPACE, sweep, join=True)
    assert sorted(trial.number for trial in found.complete) == [0, 1] and files
    assert {trial.user_attrs[DRIVER] for trial in open_study(sweep).trials} != {other.name}
    assert parent_status(sweep) == "FINISHED"


def test_an_interrupted_driver_leaves_its_trial_to_others(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(figures: object) -> None:
        raise KeyboardInterrupt

    with working(sweep, join=True), monkeypatch.context() as patch:
        patch.setattr("ray.tune.report", interrupt)
        with pytest.raises(KeyboardInterrupt):
            search_runner.run(SPACE, sweep, join=True)
        assert states(sweep) == [WAITING, WAITING]
        assert parent_status(sweep) == "RUNNING"
    found, _ = search_runner.run(SPACE, sweep, join=True)  # now it is the only one
    assert len(found.complete) == 2
    assert parent_status(sweep) == "FINISHED"


def test_gpu_hours_count_the_trials_that_others_run(sweep: Sweep) -> None:
    with another(sweep) as other:
        clock = BudgetClock(Budget(gpu_hours=1.0), start=0.0)
        asked: list[int] = []
        clock.exhausted = lambda trials, running=0: asked.append(running)  # type: ignore
        assert Admission.of(replace(sweep, trials=None), clock).refusal() is None
        assert asked == [1]
        assert Admission.of(replace(sweep, trials=1), clock).refusal() == ALL_TAKEN
        assert other.trial == 0


def test_drivers_that_join_at_once_draw_points_of_their_own(sweep: Sweep) -> None:
    def drawn(joined: str) -> float:
        study = optuna.create_study(sampler=sampler(SPACE, sweep, joined))
        return study.ask().suggest_float("beta.value", 0.0, 1.0)

    points = [drawn(name) for name in ("", "a", "b")]
    assert len(set(points)) == 3 and drawn("a") == points[1]


def test_machines_that_share_a_file_are_refused(
    sweep: Sweep, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with another(sweep):
        host = socket.gethostname()
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        expected = re.escape(
            "commands on several machines can work on one search only if its study is in a database"
            f" (--study); that of {sweep.directory} is a file, in use on host {host}"
        )
        with pytest.raises(ValueError, match=f"^{expected}$"):
            search_runner.resumed(sweep.directory, tracking_uri, join=True)
        with pytest.raises(ValueError, match=f"^{expected}$"):
            search_runner.run(SPACE, sweep, join=True)
        with working(replace(sweep, study="postgresql://host/db"), join=True) as driver:
            assert driver.joined


def test_joining_needs_locks_and_nothing_else_does(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(ValueError, match=r"only on a file system with locks; .*/s has none$"),
        working(sweep, join=True),
    ):
        pass
    found, files = search_runner.run(SPACE, sweep)
    assert len(found.complete) == 2 and files


def started_by(directory: Path) -> dict[int, str]:
    """The drivers of a search's trials, by number."""
    address = f"sqlite:///{directory / 'study.db'}"
    with turn(directory):
        if not (directory / "study.db").exists() or not optuna.get_all_study_names(address):
            return {}
        trials = optuna.load_study(study_name=directory.name, storage=address).trials
    return {trial.number: trial.user_attrs[DRIVER] for trial in trials if trial.user_attrs}


@pytest.mark.slow
def test_two_commands_share_a_search_and_one_ends_what_the_other_leaves(
    local_ray: None, tracking_uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first one and its cluster are killed in a trial, as a machine dies."""
    directory, place = tmp_path / "s", ["--tracking", tracking_uri]
    arguments = ["--trials", "4", "--storage", str(tmp_path), "--name", "s", *place]
    arguments += ["--scaling.cpus", "2"]  # one trial at a time
    settings = options({"steps": 30, "evaluation.every": 30, "optim.lr": 1e-2})
    said, left = tmp_path / "said", set[int]()
    with said.open("w") as file:
        first = subprocess.Popen(
            [sys.executable, "-m", "jobs.tune", "constant", *arguments, *settings],
            env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
            stdout=file,
            stderr=file,
        )

    def of(process: int) -> set[int]:
        return {number for number, name in started_by(directory).items() if f"-{process}-" in name}

    def lose() -> None:
        wait_until(lambda: bool(of(first.pid) and of(os.getpid())), "trials of both", 120)
        begun = of(first.pid)
        kill({first.pid} | descendants(first.pid))
        first.wait()
        left.update(begun - {trial.number for trial in load_trials(directory)})

    killer = threading.Thread(target=lose)
    try:
        created = (directory / "sweep.json").exists
        wait_until(lambda: created() or first.poll() is not None, "the search")
        assert first.poll() is None, said.read_text()
        killer.start()
        tune.main(["--resume", str(directory), "--join", *place])
        killer.join()
    finally:
        kill({first.pid} | descendants(first.pid))
        first.wait()
    out, err = capfd.readouterr()
    assert "* Pareto front; hypervolume" in out and "Warning" not in err and "Traceback" not in err
    assert left and left <= of(os.getpid())
    trials = load_trials(directory)
    assert [trial.number for trial in trials] == list(range(4))
    assert all(trial.complete for trial in trials)
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{directory / 'study.db'}")
    assert [trial.state for trial in study.trials] == [DONE] * 4
    with turn(directory):
        assert at_work(directory) == set()
