"""What a search leaves in MLflow: a view that compares its trials, and a description."""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.searching import SPACE, begun, without_ray
from helpers.tiny import TINY
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from jobs import tune
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search import search_runner
from vamf.cluster.search.analysis import mlflow_view, report
from vamf.cluster.search.analysis.mlflow_view import axes, note
from vamf.cluster.search.analysis.results import Results
from vamf.cluster.search.budget import Budget
from vamf.cluster.search.halving import Halving
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.study import open_study
from vamf.cluster.search.trials import Trial
from vamf.compat import mlflow_view as view
from vamf.metrics.distances import Measurement
from vamf.tracking import Tracker, shared_view, view_path
from vamf.tracking.event_queue import EventQueue

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def ended(
    tracking_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Sweep, Results, Callable[[], str]]:
    """A search of three trials, published, and what it prints."""
    publish = report.publish
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        patch.setattr(search_runner, "publish", publish)
        patch.setattr(report, "plot", lambda results, path: path.write_bytes(PNG))
        folder = tmp_path_factory.mktemp("views") / "s"
        sweep = begun(folder, tracking_uri, trials=3)
        found, files = search_runner.run(SPACE, sweep)
    return sweep, found, lambda: report.report(sweep, found, files)


Ended = tuple[Sweep, Results, Callable[[], str]]


def parent(sweep: Sweep) -> Run:
    return MlflowClient(sweep.parent.uri).get_run(sweep.parent.run_id)


def children(sweep: Sweep) -> dict[str, Run]:
    only = f"tags.`mlflow.parentRunId` = '{sweep.parent.run_id}'"
    runs = MlflowClient(sweep.parent.uri).search_runs([sweep.parent.experiment_id], only)
    return {run.data.tags["trial"]: run for run in runs}


def saved_view(sweep: Sweep) -> tuple[str, dict[str, Any]]:
    experiment = MlflowClient(sweep.parent.uri).get_experiment(sweep.parent.experiment_id)
    return view.decoded(experiment.tags[f"mlflow.sharedViewState.{sweep.parent.run_id}"])


def test_the_view_shows_what_the_search_varied(ended: Ended) -> None:
    sweep, _, _ = ended
    name, state = saved_view(sweep)
    variance, distance = sweep.objectives
    assert name == "s"
    assert state["searchFilter"] == f"tags.`mlflow.parentRunId` = '{sweep.parent.run_id}'"
    assert (state["orderByKey"], state["orderByAsc"]) == (f"metrics.`{distance}`", True)
    charts: dict[str, list[dict[str, Any]]] = {}
    for card in state["compareRunCharts"]:
        charts.setdefault(card["type"], []).append(card)
    (parallel,) = charts["PARALLEL"]
    assert parallel["selectedParams"] == ["beta.value"]
    assert parallel["selectedMetrics"] == [variance, distance]
    pairs = [(card["xaxis"]["key"], card["yaxis"]["key"]) for card in charts["SCATTER"]]
    over_beta = [("beta.value", distance), ("beta.value", variance)]
    assert pairs == [(variance, distance), *over_beta]
    (samples,) = charts["IMAGE"]
    assert (samples["imageKeys"], samples["step"]) == (["samples"], TINY.steps)
    assert samples["showRunParams"] is False
    assert next(card["metricKey"] for card in charts["LINE"]) == "loss/train"


def test_what_the_view_shows_is_logged(ended: Ended) -> None:
    sweep, _, _ = ended
    _, state = saved_view(sweep)
    for run in children(sweep).values():
        images = MlflowClient(sweep.parent.uri).list_artifacts(run.info.run_id, "images")
        for card in state["compareRunCharts"]:
            axis = [card[name] for name in ("xaxis", "yaxis") if name in card]
            metrics = {a["key"] for a in axis if a["type"] == "METRIC"}
            metrics |= {*card.get("selectedMetrics", []), *card.get("selectedMetricKeys", [])}
            assert metrics <= set(run.data.metrics)
            parameters = {a["key"] for a in axis if a["type"] == "PARAM"}
            assert parameters | {*card.get("selectedParams", [])} <= set(run.data.params)
            for key in card.get("imageKeys", []):
                step = f"{key}+step+{card['step']}+"
                assert any(step in image.path for image in images)


def test_the_search_prints_the_link_to_its_view(ended: Ended) -> None:
    sweep, _, said = ended
    page = "runs?workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey="
    command, link = said().splitlines()[-2:]
    assert command.startswith("compare    MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false ")
    assert link.endswith(f"/{page}{sweep.parent.run_id}")
    assert link.split()[:2][1].startswith("http://127.0.0.1:5000/#/experiments/")


def test_without_a_view_the_link_is_the_page_of_the_run(
    ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, _, _ = ended
    page = f"#/experiments/{sweep.parent.experiment_id}/runs/{sweep.parent.run_id}?{view.TRAINING}"
    away = SimpleNamespace(get_experiment=lambda identity: 1 / 0)
    assert shared_view.path(lambda: away, sweep.parent) == view_path(sweep.parent) != page
    monkeypatch.setattr(view, "KNOWN", ("2.0",))
    fresh = SimpleNamespace(get_experiment=lambda identity: SimpleNamespace(tags={}))
    shared_view.save(fresh, sweep.parent, {"name": "s", "state": {}}, 0)  # sets no tag
    assert shared_view.path(lambda: fresh, sweep.parent) == page


def test_a_refused_view_is_kept_and_what_follows_is_sent(
    ended: Ended, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, _, _ = ended

    def refuse(*_: object) -> None:
        raise MlflowException("only its owner may change it", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "set_experiment_tag", refuse)
    queue = EventQueue(Path(sweep.parent.spool))
    before, tracker = queue.refused(), Tracker(sweep.parent)
    tracker.view("s", {"a": 1})
    tracker.tags({"after": "the view"})
    assert queue.refused() == before + 1
    assert queue.empty()
    assert parent(sweep).data.tags["after"] == "the view"
    assert "MLflow refused view" in capsys.readouterr().err


def test_the_parent_is_no_trial(ended: Ended) -> None:
    sweep, found, _ = ended
    run = parent(sweep)
    assert {name.partition("/")[0] for name in run.data.metrics} == {"search"}
    assert (run.data.params["trials"], run.data.params["seeds"]) == ("3", "1")
    assert not [name for name in run.data.params if name.startswith("beta.value")]
    assert found.best is not None
    assert run.data.tags["best"].endswith(f"in trial {found.best.number}, {found.best.label}")


def test_a_trial_has_the_parameters_that_were_chosen(ended: Ended) -> None:
    sweep, found, _ = ended
    runs = children(sweep)
    assert len(runs) == len(found.trials) == 3
    for trial in found.trials:
        run = runs[str(trial.number)]
        assert run.info.run_name == f"t{trial.number:02d} beta={trial.settings['beta.value']:.3f}"
        assert float(run.data.params["beta.value"]) == trial.settings["beta.value"]
        assert len(run.data.params) < 15
        assert not [name for name in run.data.metrics if name.endswith("_se")]
        error = trial.metrics["eval/loss_variance"].error
        assert f"loss_variance ± {error:.2g}" in run.data.tags["error.eval"]
        (data,) = run.inputs.dataset_inputs
        assert data.dataset.name == "Digits"
        assert json.loads(data.dataset.source)["kind"] == "Digits"


def test_optuna_leads_to_mlflow(ended: Ended) -> None:
    sweep, found, _ = ended
    runs = children(sweep)
    for trial, record in zip(open_study(sweep).trials, found.trials, strict=True):
        run = runs[str(trial.number)].info
        page = f"http://127.0.0.1:5000/#/experiments/{run.experiment_id}/runs/{run.run_id}?"
        assert trial.user_attrs["seed_0"].startswith(page)
        assert trial.user_attrs["seconds"] == pytest.approx(record.seconds, abs=0.1)
        error = record.metrics["eval/loss_variance"].error
        assert trial.user_attrs["eval/loss_variance ±"] == error


def test_the_description_has_verdict_plot_and_a_link_to_every_run(ended: Ended) -> None:
    sweep, _, _ = ended
    text = parent(sweep).data.tags["mlflow.note.content"]
    assert "Pareto front; hypervolume" in text
    assert f"({view_path(sweep.parent)})" in text and sweep.parent.run_id in view_path(sweep.parent)
    assert f"get-artifact?path=pareto.png&run_uuid={sweep.parent.run_id}" in text
    linked = dict(re.findall(r"\[(\d+)\]\(#/experiments/\d+/runs/(\w+)\?\S+\)", text))
    assert linked == {number: run.info.run_id for number, run in children(sweep).items()}


def test_a_long_table_is_cut_to_what_mlflow_takes(ended: Ended) -> None:
    sweep, _, _ = ended
    metrics = {name: Measurement(1.0, 0.1) for name in sweep.objectives}
    trials = [
        Trial(number=n, settings={"beta.value": 0.5}, label="β=0.500", metrics=metrics)
        for n in range(500)
    ]
    many = Results(
        objectives=sweep.objectives,
        trials=trials,
        front=frozenset(),
        hypervolume=0.0,
        reference=(2.0, 2.0),
    )
    text = note(sweep, many, ["a verdict"])
    rows = [line for line in text.splitlines() if "β=" in line]
    assert len(text) < 8000
    assert f"{500 - len(rows)} more trials: trials.md" in text


def test_the_command_repeats_the_search(ended: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, _, _ = ended
    assert mlflow_view.repeat_command(sweep) is None  # its preset has no name here
    known = sweep.__class__(**vars(sweep) | {"preset": "digits", "space": "constant"})
    command = mlflow_view.repeat_command(known) or ""
    assert " constant digits --trials 3 --seeds 1 --set " in command
    assert " steps=6" in command and "ema=0.9 " in command and "proxy" not in command


@pytest.mark.parametrize(
    "options",
    [
        {"budget": Budget(hours=1.5)},
        {"budget": Budget(gpu_hours=0.25)},
        {"halving": Halving(rungs=(2, 4))},
        {"halving": Halving(rungs=(2,), keep=0.25)},
        {"scaling": Scaling(workers=2, cpus=2.0, placement="SPREAD", max_failures=0)},
        {"scaling": Scaling(wait=60.0, gpus=0.25)},
        {"trials": None, "budget": Budget(hours=2.0, gpu_hours=3.0), "front_seeds": "auto"},
        {"trials": 12, "seeds": 3},
    ],
    ids=str,
)
def test_the_command_has_every_option_that_was_chosen(ended: Ended, options: dict) -> None:
    """Which the program that it starts reads again."""
    known = {"preset": "digits", "space": "constant", "scaling": Scaling()} | options
    sweep = replace(ended[0], **known)
    command = mlflow_view.repeat_command(sweep) or ""
    plan, read, _ = tune.read(shlex.split(command.split(" tune ")[-1].split(".tune ")[-1]))
    assert (plan.trials, plan.budget, plan.halving) == (sweep.trials, sweep.budget, sweep.halving)
    assert plan.seeds == ("auto" if sweep.front_seeds == "auto" else sweep.seeds)
    assert read.scaling == sweep.scaling


def test_no_option_of_a_search_is_left_out_of_those_tried_above() -> None:
    """The kinds of options that a command may have: a new one must be in it, too."""
    tried = {"trials", "seeds", "budget", "halving", "scaling"}
    where = {"name", "storage", "tracking", "study", "register", "resume", "dry_run"}
    experiment = {"experiment", "set", "config"}
    assert {f.name for f in fields(tune.Options)} == tried | where | experiment


@pytest.mark.parametrize(
    ("settings", "drawn"),
    [
        ([{"a.x": 0}, {"a.x": 1}], ["a.x"]),
        ([{"a.kind": "A", "a.x": 0}], ["a.x"]),  # before a second trial has ended
        ([{"a.kind": "A", "a.x": 0}, {"a.kind": "A", "a.x": 1}], ["a.x"]),
        ([{"s": "one", "x": 0}, {"s": "two", "x": 1, "end": 0.5}], ["s", "x"]),
        ([{}], []),
    ],
)
def test_axes_are_what_all_trials_have_and_what_differs(
    settings: list[dict[str, Any]], drawn: list[str]
) -> None:
    assert axes(settings) == drawn
