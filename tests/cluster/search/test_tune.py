"""Real searches: what they record, what a bad trial costs, and what a dead driver costs."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import optuna
import pytest
import ray
import torch
from helpers.machine import command, descendants, kill, train_workers, wait_until
from helpers.tiny import TINY, checkpoint, history, options, same, tracked
from helpers.twin_runs import LONG
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import TrialState
from ray.util import placement_group_table

from jobs import tune
from tune_spaces import constant
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search import search_runner
from vamf.cluster.search.analysis.report import report
from vamf.cluster.search.analysis.results import Results, table
from vamf.cluster.search.budget import Budget
from vamf.cluster.search.extension import Extension
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.space import Space
from vamf.cluster.search.study import open_study
from vamf.cluster.search.trials import Trial, load_trials, trial_folder
from vamf.cluster.search.tune import max_concurrent_trials, trial_resources
from vamf.training.loop import Session
from vamf.training.loop import train as train_in_place

ABSURD_LR = 1e30

T = TypeVar("T")


def draw(trial: optuna.Trial) -> dict[str, float]:
    return {
        "beta.value": trial.suggest_float("beta.value", 0.0, 1.0),
        "optim.lr": trial.suggest_float("optim.lr", 1e-4, ABSURD_LR, log=True),
    }


def space_of(*points: Mapping[str, float]) -> Space:
    """Searches beta and the learning rate, from these points on."""
    found = SimpleNamespace(
        PRESET="digits",
        OBJECTIVES=("eval/loss_variance", "eval/distance"),
        POINTS=points,
        sampler=lambda seed: optuna.samplers.RandomSampler(seed=seed),
        space=draw,
    )
    return cast(Space, found)


SPACE = space_of(
    {"beta.value": 0.0, "optim.lr": 1e-3},
    {"beta.value": 1.0, "optim.lr": 1e-2},
    {"beta.value": 0.5, "optim.lr": ABSURD_LR},
    {"beta.value": 0.25, "optim.lr": 3e-2},
)


@dataclass(frozen=True)
class Swept:
    sweep: Sweep
    found: Results
    files: Mapping[str, Path]
    said: str

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.sweep.parent.uri)

    @property
    def children(self) -> list[Run]:
        parent = self.sweep.parent
        only = f"tags.`mlflow.parentRunId` = '{parent.run_id}'"
        return list(self.client.search_runs([parent.experiment_id], only))


def swept(
    space: Space, directory: Path, uri: str, *, trials: int, seeds: int, workers: int
) -> Swept:
    plan = search_runner.Plan(space, "test", trials, seeds, preset="tiny")
    sweep = search_runner.new(plan, TINY, directory, uri, Scaling(workers=workers, gpus=0))
    found, files = search_runner.run(space, sweep)
    return Swept(sweep, found, files, report(sweep, found, files))


@pytest.fixture(scope="module")
def four(local_ray: None, tracking_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Four trials of two seeds each, one of which cannot succeed."""
    directory = tmp_path_factory.mktemp("sweeps") / "four"
    return swept(SPACE, directory, tracking_uri, trials=4, seeds=2, workers=0)


def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


@pytest.mark.slow
def test_every_trial_is_recorded_with_all_its_seeds(four: Swept) -> None:
    trials = load_trials(four.sweep.directory)
    assert trials == four.found.trials
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert [trial.settings for trial in trials] == [dict(point) for point in SPACE.POINTS]
    for trial in four.found.complete:
        assert len(trial.seeds) == 2
        for name in four.sweep.objectives:
            a, b = (seed[name] for seed in trial.seeds)
            assert a != b
            assert trial.metrics[name].value == pytest.approx((a + b) / 2)
            assert trial.metrics[name].error == pytest.approx(abs(a - b) / 2)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_costs_its_trial_only(four: Swept) -> None:
    (failed,) = [trial for trial in four.found.trials if trial.error]
    assert (failed.number, failed.error) == (2, "seed 0: the loss of step 2 is not finite")
    assert len(four.found.complete) == 3
    assert "failed: seed 0: the loss of step 2 is not finite" in table(four.found)
    (run,) = [run for run in four.children if run.data.tags["trial"] == "2"]
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "NonFiniteLoss: the loss of step 2 is not finite"


@pytest.mark.slow
def test_the_front_is_what_nothing_dominates(four: Swept) -> None:
    points = {
        trial.number: tuple(trial.metrics[name].value for name in four.sweep.objectives)
        for trial in four.found.complete
    }
    front = {
        number
        for number, point in points.items()
        if not any(dominates(other, point) for other in points.values())
    }
    assert four.found.front == front
    # In two dimensions what a front dominates is a staircase.
    reference_x, reference_y = (1.1 * max(axis) for axis in zip(*points.values(), strict=True))
    assert four.found.reference == pytest.approx((reference_x, reference_y))
    area, ceiling = 0.0, reference_y
    for x, y in sorted(points[number] for number in front):
        area += (reference_x - x) * (ceiling - y)
        ceiling = y
    assert area > 0
    assert four.found.hypervolume == pytest.approx(area)


@pytest.mark.slow
def test_the_study_agrees_and_has_nothing_running(four: Swept) -> None:
    study = optuna.load_study(study_name="four", storage=four.sweep.storage)
    states = [trial.state for trial in study.trials]
    done, failed = TrialState.COMPLETE, TrialState.FAIL
    assert states == [done, done, failed, done]
    assert study.metric_names == list(four.sweep.objectives)
    for trial in four.found.complete:
        values = [trial.metrics[name].value for name in four.sweep.objectives]
        seen = study.trials[trial.number]
        assert seen.values == pytest.approx(values)
        assert seen.user_attrs["label"] == trial.label  # for dashboards
        assert seen.user_attrs["seed_1"].startswith("http://")


@pytest.mark.slow
def test_mlflow_has_the_search_above_its_trials(four: Swept) -> None:
    client, parent = four.client, four.client.get_run(four.sweep.parent.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["search/hypervolume"] == pytest.approx(four.found.hypervolume)
    best = four.found.best
    assert best is not None
    assert parent.data.tags["preset"] == four.sweep.preset == "tiny"
    assert parent.data.tags["best"].endswith(f"in trial {best.number}, {best.label}")
    names = {f.path for f in client.list_artifacts(parent.info.run_id)}
    assert names == {"pareto.png", "best_samples.png", "trials.md"}
    statuses = [(run.data.tags["trial"], run.info.status) for run in four.children]
    finished = [(str(trial), "FINISHED") for trial in (0, 0, 1, 1, 3, 3)]
    assert sorted(statuses) == sorted([*finished, ("2", "FAILED")])
    assert "t03 beta=0.250 lr=0.03 seed 1" in {run.info.run_name for run in four.children}
    for run in four.children:
        if run.info.status == "FINISHED":
            points = client.get_metric_history(run.info.run_id, "loss/train")
            assert [point.step for point in points] == list(range(1, 7))


@pytest.mark.slow
def test_pictures_and_table_are_in_the_folder(four: Swept) -> None:
    for name in ("front", "samples"):
        assert four.files[name].read_bytes().startswith(b"\x89PNG")
    written = four.files["table"].read_text()
    assert written == table(four.found) + "\n"
    assert "against β=0.000" in written.splitlines()[0]
    assert four.said.startswith(written)
    for path in four.files.values():
        assert path.parent == four.sweep.directory


@pytest.mark.slow
def test_a_finished_search_has_nothing_left_to_do(four: Swept) -> None:
    again = search_runner.resumed(four.sweep.directory, four.sweep.parent.uri)
    assert again == four.sweep
    found, _ = search_runner.run(SPACE, again)
    assert found == four.found
    assert len(open_study(again).trials) == 4


@pytest.mark.slow
def test_a_search_ends_with_its_hours_and_is_extended(
    local_ray: None,
    tracking_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the clock of the test an hour is over as soon as two trials have ended."""
    directory, ended = tmp_path / "hours", lambda: len(load_trials(tmp_path / "hours")) >= 2
    clock = SimpleNamespace(time=lambda: time.time() + 3600 * ended())
    monkeypatch.setattr("vamf.cluster.search.budget.time", clock)
    space = cast(Space, constant)
    plan = search_runner.Plan(space, "test", None, 1, budget=Budget(hours=1.0), preset="tiny")
    sweep = search_runner.new(plan, TINY, directory, tracking_uri, Scaling(gpus=0))
    before, _ = search_runner.run(space, sweep)
    assert len(before.complete) == len(before.trials) in (2, 3, 4)  # as many as run at once
    assert "the budget has no room for another trial: hours=1, and" in capsys.readouterr().out

    monkeypatch.undo()
    count = len(before.trials) + 1
    extension = Extension(trials=count, seeds=2)
    found, _ = search_runner.run(space, search_runner.resumed(directory, tracking_uri, extension))
    assert len(found.complete) == count
    for old, new in zip(before.trials, found.trials, strict=False):
        assert new.seeds[0] == old.seeds[0]
    chosen = [trial for trial in found.trials if len(trial.seeds) == 2]
    assert {trial.number for trial in chosen} >= {0} | found.front
    for trial in chosen:
        runs = [trial_folder(directory, trial.number) / f"seed_{seed}" for seed in (0, 1)]
        statuses = [tracked(tracking_uri, run)[0].info.status for run in runs]
        assert statuses == ["FINISHED", "FINISHED"]
    states = [trial.state for trial in open_study(sweep).trials]
    assert states == [TrialState.COMPLETE] * count


@pytest.mark.slow
def test_a_trial_of_two_workers_leaves_nothing_behind(
    local_ray: None, tracking_uri: str, tmp_path: Path
) -> None:
    directory = tmp_path / "wide"
    space = space_of(SPACE.POINTS[2], SPACE.POINTS[1])  # the first one's loss is not finite
    wide = swept(space, directory, tracking_uri, trials=2, seeds=1, workers=2)
    failed, done = wide.found.trials
    assert failed.error == "seed 0: the loss of step 2 is not finite"
    assert done.error is None
    assert wide.found.front == {1}
    runs = sorted(wide.children, key=lambda run: run.info.start_time)
    assert [run.info.status for run in runs] == ["FAILED", "FINISHED"]
    assert runs[0].info.end_time <= runs[1].info.start_time  # there are CPUs for one at a time
    wait_until(lambda: not train_workers(), "the end of all workers")
    wait_until(
        lambda: all(group["state"] == "REMOVED" for group in placement_group_table().values()),
        "the removal of all placement groups",
    )
    cpus = ray.cluster_resources()["CPU"]
    wait_until(lambda: ray.available_resources().get("CPU") == cpus, "all CPUs being free")


def trial_processes() -> set[int]:
    """The processes of Ray Tune's trials in the cluster that this process started."""
    return {pid for pid in descendants(os.getpid()) if "ImplicitFunc" in command(pid)}


ONE_IS_WRONG: list[dict[str, Any]] = [
    {"beta.value": 0.0},
    {"beta.value": 1.0},
    {"proxy": "reference", "reference": "/nowhere/at/all"},
]


def draw_point(trial: optuna.Trial) -> dict[str, Any]:
    return ONE_IS_WRONG[trial.suggest_int("point", 0, 2)]


def on_one_thread(action: Callable[[], T]) -> T:
    """As Ray runs a trial of one CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return action()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_killed_trial_goes_on_and_a_wrong_one_costs_itself(
    local_ray: None, tracking_uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two trials side by side, the process of one of them killed, and a third that cannot be."""
    space = space_of(*({"point": index} for index in range(3)))
    space.space = draw_point  # type: ignore[method-assign]
    directory, killed = tmp_path / "bereft", list[int]()

    def latest() -> int:
        return len(list(directory.glob("t00[01]/seed_0/checkpoints/step_*")))

    def kill_one() -> None:
        wait_until(lambda: latest() > 2, "a few steps", seconds=300)
        kill([min(trial_processes())])
        killed.append(latest())

    killer = threading.Thread(target=kill_one)
    killer.start()
    plan = search_runner.Plan(space, "test", 3, 1)
    sweep = search_runner.new(plan, LONG, directory, tracking_uri, Scaling(gpus=0))
    found, files = search_runner.run(space, sweep)
    killer.join()
    assert 2 < killed[0] < 80
    said, err = capfd.readouterr()
    assert all(line.startswith("trial ") for line in said.splitlines()), said
    assert said.count(": its process died; it resumes from its checkpoint") == 1
    assert "Traceback" not in err
    one, other, wrong = found.trials
    assert wrong.error == "seed 0: no checkpoint in /nowhere/at/all"
    children = Swept(sweep, found, files, "").children
    assert sorted((run.data.tags["trial"], run.info.status) for run in children) == [
        ("0", "FINISHED"),
        ("1", "FINISHED"),
        ("2", "FAILED"),
    ]
    for trial in (one, other):
        experiment, twin = LONG.override(trial.settings), tmp_path / f"twin{trial.number}"
        undisturbed = on_one_thread(lambda: train_in_place(experiment, Session(directory=twin)))  # noqa: B023
        ours = trial_folder(directory, trial.number) / "seed_0"
        assert same(checkpoint(ours, 40).load(), checkpoint(twin, 40).load())
        assert repr(trial.metrics) == repr(undisturbed.metrics)  # an error may be NaN
        (run,) = tracked(tracking_uri, ours)
        assert list(history(tracking_uri, run, "loss/train")) == list(range(1, 41))
    states = [trial.state for trial in open_study(sweep).trials]
    assert states == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL]
    wait_until(lambda: not trial_processes(), "the end of all trials' processes")


@pytest.mark.slow
def test_a_trial_without_restarts_left_is_recorded_and_costs_itself(
    local_ray: None, tracking_uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    space = space_of({"beta.value": 0.0, "optim.lr": 1e-3}, {"beta.value": 1.0, "optim.lr": 1e-3})
    directory = tmp_path / "spent"

    def kill_one() -> None:
        began = lambda: list(directory.glob("t00[01]/seed_0/checkpoints/step_*"))  # noqa: E731
        wait_until(lambda: len(began()) > 2, "a few steps", seconds=300)
        kill([min(trial_processes())])

    killer = threading.Thread(target=kill_one)
    killer.start()
    plan, scaling = search_runner.Plan(space, "test", 2, 1), Scaling(gpus=0, max_failures=0)
    sweep = search_runner.new(plan, LONG, directory, tracking_uri, scaling)
    found, _ = search_runner.run(space, sweep)
    killer.join()
    (spent,), (done,) = [t for t in found.trials if t.error], found.complete
    assert spent.error is not None
    assert spent.error.startswith("its process died more than 0 times; logs in ")
    assert f"failed: {spent.error}" in table(found)
    assert f"trial {spent.number}  {spent.label}  failed: its process" in capfd.readouterr().out
    (run,) = tracked(tracking_uri, trial_folder(directory, spent.number) / "seed_0")
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", spent.error)
    states = {trial.number: trial.state for trial in open_study(sweep).trials}
    assert states == {spent.number: TrialState.FAIL, done.number: TrialState.COMPLETE}
    assert (
        search_runner.run(space, search_runner.resumed(directory, tracking_uri))[0].trials
        == found.trials
    )


def test_trials_with_workers_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vamf.cluster.search.tune.sizes", lambda: [{"CPU": 9.0, "GPU": 2.0}])
    assert max_concurrent_trials(Scaling(workers=0)) is None
    assert max_concurrent_trials(Scaling(workers=2)) == 4
    assert max_concurrent_trials(Scaling(workers=2, cpus=1.5)) == 3
    assert max_concurrent_trials(Scaling(workers=2, gpus=0.5)) == 2
    assert max_concurrent_trials(Scaling(workers=9, gpus=1)) == 1
    assert trial_resources(Scaling(cpus=2, gpus=0.5)) == {"CPU": 2, "GPU": 0.5}
    assert trial_resources(Scaling(workers=2))["CPU"] == 0


def unfinished(directory: Path) -> list[Path]:
    """Folders of the trials in flight."""
    began = {path.parent.parent for path in directory.glob("t*/seed_0/run.json")}
    return sorted(folder for folder in began if not (folder / "trial.json").exists())


def interrupted(directory: Path, uri: str) -> list[Trial]:
    """Starts a search of four trials and kills all of it with one trial done and one in flight."""
    storage, name = str(directory.parent), directory.name
    arguments = ["--trials", "4", "--storage", storage, "--name", name, "--tracking", uri]
    arguments += ["--halving.rungs", "20", "--halving.keep", "0.3"]
    settings = options({"steps": 60, "evaluation.every": 60, "optim.lr": 1e-2})
    said = directory.parent / "said"
    with said.open("w") as file:
        driver = subprocess.Popen(
            [sys.executable, "-m", "jobs.tune", "constant", *arguments, *settings],
            env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
            stdout=file,
            stderr=file,
        )
    try:
        wait_until(
            lambda: bool(
                driver.poll() is not None
                or ("trial " in said.read_text() and unfinished(directory))
            ),
            "a trial done and another one begun",
            seconds=300,
        )
        family = descendants(driver.pid)
    finally:
        # At once, as a machine dies that loses its power.
        kill({driver.pid} | descendants(driver.pid))
        driver.wait()
    wait_until(lambda: not any(map(command, family)), "the end of all processes")
    text = said.read_bytes().decode()
    for noise in ("Warning", "[I ", "INFO", "Traceback"):
        assert noise not in text, text
    return load_trials(directory)


@pytest.mark.slow
def test_a_killed_search_keeps_what_is_done_and_goes_on_with_the_rest(
    local_ray: None, tracking_uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "killed"
    before = interrupted(directory, tracking_uri)
    assert 1 <= len(before) < 4
    lost = [int(folder.name.removeprefix("t")) for folder in unfinished(directory)]
    client = MlflowClient(tracking_uri)
    parent = json.loads((directory / "sweep.json").read_text())["parent"]
    assert client.get_run(parent["run_id"]).info.status == "RUNNING"
    capfd.readouterr()

    tune.main(["--resume", str(directory), "--tracking", tracking_uri])
    out, err = capfd.readouterr()
    assert "* Pareto front; hypervolume" in out
    assert "Warning" not in err
    after = load_trials(directory)
    assert [trial for trial in after if trial in before] == before
    assert len(after) == 4
    assert all(trial.error is None for trial in after)
    assert set(lost) <= {trial.number for trial in after}
    study = optuna.load_study(study_name="killed", storage=f"sqlite:///{directory / 'study.db'}")
    states = {trial.number: trial.state for trial in study.trials}
    for trial in after:
        assert states[trial.number] == (TrialState.PRUNED if trial.stopped else TrialState.COMPLETE)
    assert states.keys() == {trial.number for trial in after}
    rungs = sorted(path.parent.name for path in directory.glob("t*/rung_00000020.json"))
    assert rungs == [f"t{trial.number:03d}" for trial in after]
    betas = [trial.settings["beta.value"] for trial in after]
    assert {0.0, 1.0} < set(betas)
    assert [study.trials[trial.number].params["beta.value"] for trial in after] == betas

    assert client.get_run(parent["run_id"]).info.status == "FINISHED"
    only = f"tags.`mlflow.parentRunId` = '{parent['run_id']}'"
    children = client.search_runs([parent["experiment_id"]], only)
    ends = {int(run.data.tags["trial"]): run.info.status for run in children}
    stopped = {trial.number for trial in after if trial.stopped}
    assert {number for number, end in ends.items() if end == "KILLED"} == stopped
    assert {number for number, end in ends.items() if end == "FINISHED"} == {
        trial.number for trial in after if trial.complete
    }
    assert len(ends) == len(children) == 4
