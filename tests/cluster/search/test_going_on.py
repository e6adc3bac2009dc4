"""A search that goes on: with the trials that were in flight, and with those that failed."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.machine import wait_until
from helpers.mlflow_server import Server
from helpers.searching import SPACE, begun, without_ray
from helpers.tiny import TINY, checkpoint, history, same, tracked
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import TrialState

from jobs import tune
from vamf.cluster.search import saved_search, search_runner
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.study import open_study
from vamf.cluster.search.trials import Trial, load_trials, trial_folder
from vamf.cluster.train.start_delay import WaitingTrials
from vamf.errors import NotCreated, NothingFound, RunFailed
from vamf.metrics.distances import Measurement
from vamf.run_layout import SPENT, SWEEP
from vamf.tracking.event_queue import Event, EventQueue
from vamf.training.loop import Session
from vamf.training.loop import train as train_in_place

DONE, FAIL, WAITING = TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)


def at(reports: int, action: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    """Does something at a trial's report of that number, over all trials."""
    seen: list[Any] = []

    def report(figures: dict[str, Any]) -> None:
        seen.append(figures)
        if len(seen) == reports:
            action()

    return report


def raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def states(sweep: Sweep) -> list[TrialState]:
    return [trial.state for trial in open_study(sweep).trials]


def folder(sweep: Sweep, number: int) -> Path:
    return trial_folder(sweep.directory, number) / "seed_0"


def children(sweep: Sweep) -> list[Run]:
    only = f"tags.`mlflow.parentRunId` = '{sweep.parent.run_id}'"
    return list(MlflowClient(sweep.parent.uri).search_runs([sweep.parent.experiment_id], only))


@pytest.mark.parametrize(
    ("end", "left"),
    [
        (KeyboardInterrupt(), WAITING),
        pytest.param(SystemExit(), TrialState.RUNNING, marks=pytest.mark.slow),  # or a dead process
    ],
)
def test_a_trial_in_flight_goes_on_from_its_checkpoint(
    end: BaseException,
    left: TrialState,
    tracking_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sweep = begun(tmp_path / "s", tracking_uri)
    with monkeypatch.context() as patch, pytest.raises(type(end)):
        patch.setattr("ray.tune.report", at(7 + 5, raising(end)))  # the second trial's step 5
        search_runner.run(SPACE, sweep)
    assert states(sweep) == [DONE, left]
    (folder(sweep, 1) / SPENT).write_text(json.dumps({"seconds": 1e6, "gpu_seconds": 2e6}))

    steps: list[int] = []
    monkeypatch.setattr("ray.tune.report", lambda figures: steps.append(figures.get("steps", 0)))
    again = search_runner.resumed(sweep.directory, tracking_uri)
    found, _ = search_runner.run(SPACE, again)
    assert steps == [5, 6, 0]  # its checkpoint was of step 4; last, the objectives
    assert states(again) == [DONE, DONE]
    assert [trial.settings for trial in found.trials] == list(SPACE.POINTS)
    assert [trial.params for trial in open_study(again).trials] == list(SPACE.POINTS)
    assert found.trials[1].steps == 6
    assert found.trials[0].seconds < 1e6 < found.trials[1].seconds
    assert found.trials[1].gpu_seconds == 2e6
    twin = TINY.override({"beta.value": 1.0})
    train_in_place(twin, Session(directory=tmp_path / "twin"))
    ours = checkpoint(folder(sweep, 1), 6).load()
    assert same(ours, checkpoint(tmp_path / "twin", 6).load())
    assert [run.info.status for run in children(again)] == ["FINISHED"] * 2
    (run,) = tracked(tracking_uri, folder(sweep, 1))
    assert list(history(tracking_uri, run, "loss/train")) == [1, 2, 3, 4, 5, 6]
    assert history(tracking_uri, run, "time/seconds")[6] > 1e6


def test_failed_trials_are_tried_anew_if_that_is_asked_for(
    tracking_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep = begun(tmp_path / "s", tracking_uri, experiment=TINY.override({"optim.lr": 1e30}))
    with pytest.raises(NothingFound):
        search_runner.run(SPACE, sweep)
    assert states(sweep) == [FAIL, FAIL]
    (sweep.directory / SWEEP).unlink()
    saved_search.save(
        replace(sweep, experiment=TINY)
    )  # as if a lack of the machine had been mended
    monkeypatch.setattr(tune.named, "space", {"test": SPACE}.__getitem__)
    argv = ["--resume", str(sweep.directory), "--tracking", tracking_uri]
    with pytest.raises(SystemExit):
        tune.main(argv)
    assert len(load_trials(sweep.directory)) == 2
    tune.main([*argv, "--retry-failed"])
    trials = load_trials(sweep.directory)
    assert [(t.number, t.error, t.settings) for t in trials] == [
        (2, None, SPACE.POINTS[0]),
        (3, None, SPACE.POINTS[1]),
    ]
    assert states(sweep) == [FAIL, FAIL, DONE, DONE]
    assert "* Pareto front; hypervolume" in capsys.readouterr().out


def test_a_trial_that_mlflow_gives_no_run_has_no_result(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise NotCreated("run 's-t01' was not created; MLflow at home says no")

    sweep = begun(tmp_path / "s", tracking_uri)
    with monkeypatch.context() as patch, pytest.raises(RunFailed) as raised:
        refuse = lambda: patch.setattr("vamf.tracking.create", refused)  # noqa: E731
        patch.setattr("ray.tune.report", at(1, refuse))
        search_runner.run(SPACE, sweep)
    assert str(raised.value) == (
        "1 of 2 trials have no result yet: run 's-t01' was not created; MLflow at home says no; "
        f"those that ended are in {tmp_path / 's' / 'table'}; to resume: {sweep.resume_command}"
    )
    assert states(sweep) == [DONE, WAITING]
    found, _ = search_runner.run(SPACE, search_runner.resumed(sweep.directory, tracking_uri))
    assert [trial.error for trial in found.trials] == [None, None]
    assert states(sweep) == [DONE, DONE]


def test_what_trials_could_not_send_is_sent_when_the_search_goes_on(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its next trial begins."""
    sweep = begun(tmp_path / "s", tracking_uri)
    search_runner.run(SPACE, sweep)
    (run,) = tracked(tracking_uri, folder(sweep, 0))
    queue = EventQueue(folder(sweep, 0) / "spool" / run.info.run_id)
    queue.append(Event(kind="metrics", data={"values": {"loss/train": 0.5}, "step": 7}))
    found: list[float] = []

    def search(*_: object) -> None:
        found.append(history(tracking_uri, run, "loss/train")[7])

    monkeypatch.setattr(search_runner, "search", search)
    search_runner.run(SPACE, sweep)
    assert found == [0.5]


def test_a_search_whose_trials_all_fail_now_is_no_success(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where earlier ones succeeded."""
    sweep = replace(begun(tmp_path / "s", tracking_uri), trials=4)
    good = {name: Measurement(1.0, 0.1) for name in sweep.objectives}

    def search(*_: object) -> None:
        for number in range(len(load_trials(sweep.directory)), 4):
            trial = Trial(number=number, settings={}, label="", error="it is broken")
            trial.save(trial_folder(sweep.directory, number))

    monkeypatch.setattr(search_runner, "search", search)
    for number in (0, 1):
        done = Trial(number=number, settings={}, label="", metrics=good)
        done.save(trial_folder(sweep.directory, number))
    with pytest.raises(NothingFound, match="no trial of s that was tried now succeeded"):
        search_runner.run(SPACE, sweep)
    found, _ = search_runner.run(SPACE, sweep)  # nothing was left to try
    assert [bool(trial.error) for trial in found.trials] == [False, False, True, True]


@pytest.mark.slow
def test_an_outage_costs_no_trial_and_no_point(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow goes while the first trial trains, and comes back while the second waits to begin."""
    for name, seconds in (
        ("run_creation.CREATE_S", 0.2),
        ("run_creation.RETRY_S", 0.2),
        ("tracker.CLOSE_S", 0),
    ):
        monkeypatch.setattr(f"vamf.tracking.{name}", seconds)
    server = Server(tmp_path)
    database = Path(tracking_uri.removeprefix("sqlite:///"))
    (tmp_path / "mlflow.db").write_bytes(database.read_bytes())
    said: list[str] = []

    def mend() -> None:
        waits = tmp_path / "s" / "t001" / "seed_0" / "waiting"
        wait_until(waits.exists, "the second trial's waiting")
        monkeypatch.setattr("vamf.cluster.train.start_delay.LOOK_S", 0)
        said.extend(waiting.look())
        server.start()

    try:
        server.start()
        sweep = begun(tmp_path / "s", server.uri)
        waiting = WaitingTrials(sweep.directory)
        mending = threading.Thread(target=mend)
        mending.start()
        monkeypatch.setattr("ray.tune.report", at(3, server.kill))
        found, _ = search_runner.run(SPACE, sweep)
        mending.join()
        assert [trial.error for trial in found.trials] == [None, None]
        assert [run.info.status for run in children(sweep)] == ["FINISHED"] * 2
        for number in (0, 1):
            (run,) = tracked(server.uri, folder(sweep, number))
            assert list(history(server.uri, run, "loss/train")) == [1, 2, 3, 4, 5, 6]
        assert said == [f"trial 1 waits to begin: MLflow at {server.uri} does not answer"]
    finally:
        server.kill()
