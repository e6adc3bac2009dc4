"""Searches in an object store, which go on on a machine that has nothing of them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers import under_store
from helpers.machine import command, descendants, kill, wait_until
from helpers.s3_server import Server
from helpers.searching import SPACE, begun, without_ray
from helpers.tiny import TINY, history, options, same, tracked
from mlflow import MlflowClient
from optuna.trial import TrialState

from jobs import resend
from vamf.cluster.search import search_runner
from vamf.cluster.search.analysis.report import publish
from vamf.cluster.search.extension import Extension
from vamf.cluster.search.halving import Halving
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.search_end import requeue
from vamf.cluster.search.study import open_study
from vamf.errors import StorageUnusable, StoreError
from vamf.store import Store
from vamf.tracking.event_queue import Event
from vamf.training.checkpoints.checkpoint import find_checkpoint
from vamf.training.loop import Session
from vamf.training.loop import train as train_in_place

assert under_store.Under.protocol

DONE, WAITING = TrialState.COMPLETE, TrialState.WAITING


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Begins another machine, on which there are no working copies, but statistics of the data."""

    def begin(name: str) -> None:
        before, here = Path(os.environ["VAMF_CACHE"]), tmp_path / name
        shutil.copytree(before, here, ignore=shutil.ignore_patterns("store"))
        monkeypatch.setenv("VAMF_CACHE", str(here))

    begin("here")
    return begin


@pytest.fixture
def store(tmp_path: Path, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> Store:
    """A place for a search in a store that is a folder of this machine."""
    (tmp_path / "under" / tmp_path.name).mkdir(parents=True)
    monkeypatch.setenv("UNDER", str(tmp_path / "under"))
    return Store(f"under://{tmp_path.name}/runs/s")  # opened once for each address


def states(sweep: Sweep) -> list[TrialState]:
    return [trial.state for trial in open_study(sweep).trials]


def dies_at(reports: int) -> Callable[[Mapping[str, Any]], None]:
    seen: list[Any] = []

    def report(figures: Mapping[str, Any]) -> None:
        seen.append(figures)
        if len(seen) == reports:
            raise SystemExit  # as a dead process: nothing is requeued

    return report


@pytest.mark.slow
def test_a_search_goes_on_on_another_machine(
    store: Store,
    machine: Callable[[str], None],
    tracking_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first trial is not trained again, the second goes on from its checkpoint."""
    without_ray(monkeypatch)
    sweep = begun(store, tracking_uri)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("ray.tune.report", dies_at(7 + 5))  # the second trial's step 5
        search_runner.run(SPACE, sweep)
    (first,) = (name for name in store.names() if name.endswith("trial.json"))
    record = store.read(first)
    store.write("t001/seed_0/spent.json", json.dumps({"seconds": 1e6, "gpu_seconds": 2e6}).encode())

    machine("there")
    steps: list[int] = []
    monkeypatch.setattr("ray.tune.report", lambda figures: steps.append(figures.get("steps", 0)))
    again = search_runner.resumed(store, tracking_uri)
    assert again.directory.is_relative_to(tmp_path / "there")
    assert len(open_study(again).trials) == 2
    with monkeypatch.context() as patch:
        patch.setattr(search_runner, "publish", publish)
        found, files = search_runner.run(SPACE, again)
    assert steps == [5, 6, 0]  # its checkpoint was of step 4; last, the objectives
    assert store.read(first) == record
    assert [trial.settings for trial in found.trials] == list(SPACE.POINTS)
    assert found.trials[0].seconds < 1e6 < found.trials[1].seconds
    twin = TINY.override({"beta.value": 1.0})
    train_in_place(twin, Session(directory=tmp_path / "twin"))
    ours = find_checkpoint(Path((store / "t001" / "seed_0").url)).load()
    assert same(ours, find_checkpoint(tmp_path / "twin").load())
    (run,) = tracked(tracking_uri, store / "t001" / "seed_0")
    assert list(history(tracking_uri, run, "loss/train")) == [1, 2, 3, 4, 5, 6]
    (parent,) = tracked(tracking_uri, store)
    assert (parent.info.run_name, parent.info.status) == ("s", "FINISHED")

    names = set(store.names())
    assert {"sweep.json", "study.db", "trials.md", "pareto.png", "best_samples.png"} <= names
    assert files["samples"].read_bytes() == store.read("best_samples.png")
    assert not [name for name in names if name.endswith(".lock") or "drivers" in name]
    (tmp_path / "copy.db").write_bytes(store.read("study.db"))
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/copy.db")
    assert [trial.state for trial in study.trials] == [DONE, DONE]

    # A longer search, with more seeds, on a third machine.
    machine("elsewhere")
    summaries = [f"t00{number}/seed_0/summary.json" for number in (0, 1)]
    before = [store.read(name) for name in summaries]
    extension = Extension(trials=3, seeds=2)
    more = search_runner.resumed(store, tracking_uri, extension)
    after, _ = search_runner.run(SPACE, more)
    assert len(after.complete) == 3
    assert {len(trial.seeds) for trial in after.complete if trial.number in after.front} == {2}
    assert [store.read(name) for name in summaries] == before  # nothing was trained again


def test_an_interrupted_search_leaves_its_study_in_the_store(
    store: Store,
    machine: Callable[[str], None],
    tracking_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(figures: Mapping[str, Any]) -> None:
        raise KeyboardInterrupt

    without_ray(monkeypatch)
    sweep = begun(store, tracking_uri)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ray.tune.report", interrupt)
        search_runner.run(SPACE, sweep)
    machine("there")
    again = search_runner.resumed(store, tracking_uri)
    assert states(again) == [WAITING, WAITING]
    (run,) = tracked(tracking_uri, store / "t000" / "seed_0")
    assert run.info.status == "KILLED"


def test_the_run_of_a_trial_on_a_lost_node_is_closed(
    store: Store, machine: Callable[[str], None], tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what it has left in the store: the driver's own copy has nothing of it."""
    without_ray(monkeypatch)
    sweep = begun(store, tracking_uri)
    monkeypatch.setattr("ray.tune.report", dies_at(3))
    with pytest.raises(SystemExit):
        search_runner.run(SPACE, sweep)
    (run,) = tracked(tracking_uri, store / "t000" / "seed_0")
    MlflowClient(tracking_uri).update_run(run.info.run_id, status="RUNNING")
    assert not (sweep.directory / "t000").exists()
    assert requeue(sweep, set()) == [0]
    assert states(sweep) == [WAITING, WAITING]
    (run,) = tracked(tracking_uri, store / "t000" / "seed_0")
    assert run.info.status == "KILLED"


def test_trials_are_ended_early_by_what_is_in_the_store(
    store: Store, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    sweep = begun(store, tracking_uri, trials=3, halving=Halving(rungs=(2,), keep=0.1))
    found, _ = search_runner.run(SPACE, sweep)
    rungs = [name for name in store.names() if "rung_" in name]
    assert rungs == [f"t{number:03d}/rung_00000002.json" for number in range(3)]
    verdicts = {name[:4]: json.loads(store.read(name))["stopped"] for name in rungs}
    assert {f"t{t.number:03d}": t.stopped for t in found.trials} == verdicts
    assert sum(why is not None for why in verdicts.values()) >= 1
    assert all(trial.seconds_at_rungs > 0 for trial in found.trials)


@pytest.mark.parametrize(
    "refused", [("write", "upload"), pytest.param(("upload",), marks=pytest.mark.slow)], ids=str
)
def test_a_store_that_does_not_answer_fails_no_trial(
    refused: tuple[str, ...],
    store: Store,
    machine: Callable[[str], None],
    tracking_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither if it takes everything but checkpoints."""

    def refuse(*_: object) -> None:
        raise StoreError("the store: it is away")

    def report(figures: Mapping[str, Any]) -> None:
        if figures.get("steps") == 3:
            patch.setattr("vamf.cluster.train.store_sync.PAUSES_S", ())
            for method in refused:
                patch.setattr(Store, method, refuse)

    without_ray(monkeypatch)
    sweep = begun(store, tracking_uri)
    with monkeypatch.context() as patch:
        patch.setattr("ray.tune.report", report)
        with pytest.raises(StorageUnusable, match="it is away"):
            search_runner.run(SPACE, sweep)
    assert not [name for name in store.names() if name.endswith("trial.json")]
    machine("there")
    found, _ = search_runner.run(SPACE, search_runner.resumed(store, tracking_uri))
    assert [trial.error for trial in found.trials] == [None, None]


def test_what_could_not_be_sent_is_sent_from_any_machine(
    store: Store,
    machine: Callable[[str], None],
    tracking_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without downloading a checkpoint."""
    without_ray(monkeypatch)
    search_runner.run(SPACE, begun(store, tracking_uri))
    (run,) = tracked(tracking_uri, store / "t000" / "seed_0")
    queue = f"t000/seed_0/spool/{run.info.run_id}"
    event = Event(kind="metrics", data={"values": {"loss/train": 0.5}, "step": 7})
    store.write(f"{queue}/events.jsonl", json.dumps(asdict(event)).encode() + b"\n")
    store.delete(f"{queue}/sent")
    for name, line in (("there", "events sent: 1"), ("now", "nothing was waiting")):
        machine(name)
        resend.main([store.url])
        assert capsys.readouterr().out.splitlines()[-1].startswith(line)
    assert history(tracking_uri, run, "loss/train")[7] == 0.5
    assert not list((tmp_path / "there").rglob("*.pt"))


def test_what_a_store_does_not_take_is_one_line(
    store: Store, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    with pytest.raises(ValueError, match=rf"^no search in {store}: .* is missing$"):
        search_runner.resumed(store, tracking_uri)
    begun(store, tracking_uri)
    with pytest.raises(ValueError, match=rf"^{store} exists; choose another --name"):
        begun(store, tracking_uri)
    with pytest.raises(ValueError, match=rf"only in a folder; got {store}$"):
        search_runner.resumed(store, tracking_uri, join=True)


def command_line(said: Path, cache: Path, *arguments: str) -> subprocess.Popen:
    """A command of a user's own on a machine with these working copies."""
    with said.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.tune", *arguments],
            env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
            | {"VAMF_CACHE": str(cache)},
            stdout=file,
            stderr=file,
        )


@pytest.mark.slow
def test_a_machine_that_is_lost_takes_no_trial_with_it(
    s3: Server, warm_workers: None, tracking_uri: str, tmp_path: Path
) -> None:
    """Killed at once, cluster and all, with a trial done and another begun."""
    store, place = Store(s3.url(f"{tmp_path.name}/s")), ["--tracking", tracking_uri]
    arguments = ["--trials", "2", "--storage", store.parent.url, "--name", "s", *place]
    arguments += ["--scaling.cpus", "2"]  # one after the other
    settings = options({"steps": 30, "evaluation.every": 30, "checkpoint.every": 5})
    said, there = tmp_path / "said", tmp_path / "said there"

    def begun_and_ended() -> bool:
        names = store.names()
        ended = {name[:4] for name in names if name.endswith("/trial.json")}
        kept = {name[:4] for name in names if name.endswith("manifest.json")}
        return bool(ended and kept - ended)

    def lose(driver: subprocess.Popen) -> None:
        family = descendants(driver.pid)
        kill({driver.pid} | family)
        driver.wait()
        wait_until(lambda: not any(map(command, family)), "the end of all processes")

    driver = command_line(said, tmp_path / "here", "constant", *arguments, *settings)
    try:
        wait_until(lambda: begun_and_ended() or driver.poll() is not None, "a trial done")
        assert driver.poll() is None, said.read_text()
    finally:
        lose(driver)
    names = [name for name in store.names() if name.endswith("/trial.json")]
    before = {name: store.read(name) for name in names}

    again = command_line(there, tmp_path / "there", "--resume", store.url, *place)
    try:
        assert again.wait(300) == 0, there.read_text()
    finally:
        lose(again)
    assert "* Pareto front; hypervolume" in there.read_text()
    records = [name for name in store.names() if name.endswith("/trial.json")]
    assert records == [f"t{number:03d}/trial.json" for number in range(2)]
    assert len(before) == 1 and store.read(names[0]) == before[names[0]]
    assert all(json.loads(store.read(name))["error"] is None for name in records)
    (parent,) = tracked(tracking_uri, store)
    assert parent.info.status == "FINISHED"
    only = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    children = MlflowClient(tracking_uri).search_runs([parent.info.experiment_id], only)
    assert sorted(run.data.tags["trial"] for run in children) == ["0", "1"]
    for run in children:
        assert list(history(tracking_uri, run, "loss/train")) == list(range(1, 31))
