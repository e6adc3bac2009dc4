"""An experiment as a value: frozen, hashable, complete, and checked as a whole."""

import dataclasses
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from vamf.data.toys import Toy
from vamf.experiment import Experiment
from vamf.experiment_settings import Checkpoints, Evaluation, Optimiser
from vamf.flow.guidance import Guidance
from vamf.flow.objectives.alpha_flow import AlphaFlowLoss, AlphaSchedule
from vamf.flow.objectives.ddpm import DDPM
from vamf.flow.objectives.meanflow import Anchor
from vamf.flow.objectives.terms import AdaptiveWeight
from vamf.flow.times import LogitNormalTimes, UniformTimes
from vamf.metrics.distances import FrechetDistance, SlicedWasserstein
from vamf.models.mlp import MLPConfig
from vamf.models.unet import UNetConfig
from vamf.presets import PRESETS

DIGITS = Experiment()
WEIGHTED = PRESETS["digits"]
TOY = Experiment(data=Toy(), model=MLPConfig(), evaluation=Evaluation(distance=SlicedWasserstein()))


def fields(value):
    """All dataclasses of a value, itself included."""
    parts = [getattr(value, f.name) for f in dataclasses.fields(value)]
    return [value, *(x for p in parts if dataclasses.is_dataclass(p) for x in fields(p))]


@pytest.mark.parametrize("experiment", [DIGITS, TOY], ids=["digits", "toy"])
def test_frozen_and_hashable_all_the_way_down(experiment):
    assert hash(experiment) == hash(dataclasses.replace(experiment))
    for part in fields(experiment):
        for f in dataclasses.fields(part):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(part, f.name, None)


def test_positions_are_refused():
    for part in fields(DIGITS):
        if dataclasses.fields(part):
            with pytest.raises(TypeError, match="positional"):
                type(part)(getattr(part, dataclasses.fields(part)[0].name))


@pytest.mark.parametrize("experiment", [DIGITS, TOY], ids=["digits", "toy"])
def test_saved_and_loaded(experiment, tmp_path):
    changed = experiment.override({"loss.anchor.weight": 0.25, "seed": 7})
    changed.save(tmp_path / "experiment.json")
    assert Experiment.load(tmp_path / "experiment.json") == changed != experiment


def test_override_by_dotted_names():
    changed = DIGITS.override(
        {
            "optim.lr": 3e-4,
            "model.multipliers": [1, 2],
            "evaluation.distance.samples": 40,
            "loss.weight.p": 1,
        }
    )
    assert changed.optim.lr == 3e-4 and changed.model.multipliers == (1, 2)
    assert changed.evaluation.distance.samples == 40 and changed.loss.weight.p == 1.0
    restored = changed.override(
        {
            "optim.lr": DIGITS.optim.lr,
            "model.multipliers": DIGITS.model.multipliers,
            "evaluation.distance.samples": DIGITS.evaluation.distance.samples,
            "loss.weight.p": DIGITS.loss.weight.p,
        }
    )
    assert restored == DIGITS


def test_override_switches_kinds():
    changed = DIGITS.override({"times.kind": "UniformTimes", "times.max_gap": 0.5})
    assert changed.times == UniformTimes(max_gap=0.5)
    assert changed.override({"times.kind": "LogitNormalTimes"}).times == LogitNormalTimes()
    kinds = {
        "data.kind": "Toy",
        "model.kind": "MLPConfig",
        "evaluation.distance.kind": "SlicedWasserstein",
    }
    assert DIGITS.override(kinds) == TOY


def test_override_makes_an_anchor_of_none_and_none_of_it():
    changed = DIGITS.override({"loss.anchor.weight": 0.5})
    assert changed.loss.anchor == Anchor(weight=0.5)
    assert changed.override({"loss.anchor": None}) == DIGITS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optm.lr": 1}, "unknown setting 'optm'; did you mean 'optim'?"),
        ({"optim.rl": 1}, "unknown setting 'optim.rl'; did you mean 'lr'?"),
        ({"times.max_gap": 1}, "unknown setting 'times.max_gap'"),
        ({"loss.anchor.wieght": 1}, "unknown setting 'loss.anchor.wieght'; did you mean 'weight'?"),
        ({"beta": 0.5}, "set beta by its fields .*beta.value.*; got 0.5"),
        ({"beta.value": math.nan}, "beta.value must be finite; got nan"),
        ({"beta.value": 2.0}, "beta must lie in [0, 1]; got 2.0"),
        ({"beta.end": 0.5}, "a constant beta takes no end"),
        ({"optim.lr": "fast"}, "optim.lr: .*number"),
        ({"steps": 1.5}, "steps: .*integer"),
        ({"proxy": "none"}, "proxy: .*'ema', 'online'"),
        ({"proxy": "head"}, "proxy head and model.velocity_head go together"),
        ({"proxy": "reference"}, "proxy reference takes a checkpoint"),
        ({"reference": "runs/a"}, "proxy reference takes a checkpoint"),
        ({"probe.pairs": 1}, "at least 2 pairs of batches; got 1"),
        ({"beta.kind": "AdaptiveBeta", "beta.pairs": 1}, "at least 2 pairs of batches; got 1"),
        ({"beta.kind": "AdaptiveBeta", "beta.low": 0.5}, "0 <= low <= start <= high <= 1"),
        ({"beta.kind": "BetaOfTime", "beta.at_half": 1.5}, "beta.at_half must lie in"),
        ({"data.kind": "Toy"}, "points take an MLPConfig; got UNetConfig"),
        ({"evaluation.distance.kind": "SlicedWasserstein"}, "images by FrechetDistance"),
    ],
)
def test_bad_overrides_raise_one_line(changes, message):
    pattern = message.replace("?", r"\?").replace("[", r"\[")
    with pytest.raises(ValueError, match=pattern) as caught:
        DIGITS.override(changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        *((Optimiser, {"lr": lr}, "optim.lr must be positive") for lr in (0.0, -1.0, math.nan)),
        *((Optimiser, {n: b}, "must lie in") for n in ("beta1", "beta2") for b in (-0.1, 1.0)),
        *((Optimiser, {"final": f}, "optim.final") for f in (-0.1, 1.1, math.nan)),
        (Optimiser, {"warmup": -1}, "optim.warmup must be at least 0; got -1"),
        (Evaluation, {"every": 0}, "every must be at least 1"),
        (Evaluation, {"sampling_steps": 0}, "sampling_steps must be at least 1"),
        (Evaluation, {"variance_samples": 1}, "variance_samples must be at least 2"),
        (Evaluation, {"gradient_batches": 1}, "gradient_batches must be at least 2"),
        (Checkpoints, {"every": 0}, "checkpoint.every must be at least 1"),
        (Checkpoints, {"keep": 0}, "checkpoint.keep must be at least 1"),
        *((Experiment, {n: 0}, f"{n} must be at least 1") for n in ("batch", "steps", "log_every")),
        *((Experiment, {"ema": d}, "ema must lie in") for d in (-0.1, 1.0, math.nan)),
        (Experiment, {"data": Toy()}, "points take an MLPConfig"),
        (Experiment, {"data": Toy(), "model": MLPConfig()}, "points are measured by"),
        (FrechetDistance, {"samples": 30}, "at least 40"),
        (FrechetDistance, {"samples": 20}, "at least 40"),
        (SlicedWasserstein, {"samples": 1}, "at least 2 samples"),
        (SlicedWasserstein, {"repetitions": 1}, "at least 2 samples"),
        (Toy, {"name": "circle"}, "name must be one of"),
    ],
)
def test_bad_settings_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_images_may_be_flattened_for_a_perceptron():
    assert DIGITS.override({"model.kind": "MLPConfig"}).model == MLPConfig()


def test_flatten_holds_every_choice_by_its_dotted_name():
    flat = TOY.flatten()
    assert flat["data.name"] == "eight_gaussians" and flat["optim.lr"] == 1e-3
    assert flat["model.hidden"] == [128, 128, 128] and flat["loss.anchor"] is None
    assert flat["evaluation.distance.kind"] == "SlicedWasserstein"
    assert not any(isinstance(v, dict) for v in flat.values())
    json.dumps(flat, allow_nan=False)
    # Every dotted name but the kinds can be given back to override, to the same experiment.
    assert TOY.override(flat) == TOY


def test_default_model_is_the_published_unet():
    assert DIGITS.model == UNetConfig()


GUIDED = DIGITS.override({"guidance.cfg_kappa": 0.5, "model.classes": 10})
TOLD = DIGITS.override({"guidance.max_scale": 8.0, "model.classes": 10, "model.guided": True})


def test_guidance_and_classes_are_set_together():
    assert GUIDED.guidance == Guidance(cfg_kappa=0.5) and GUIDED.model.classes == 10
    assert Experiment.from_dict(GUIDED.to_dict()) == GUIDED
    assert GUIDED.override({"guidance": None, "model.classes": 0}) == DIGITS


@pytest.mark.parametrize(
    ("experiment", "changes", "message"),
    [
        (DIGITS, {"guidance.omega": 1.0}, "guidance and model.classes go together"),
        (DIGITS, {"model.classes": 10}, "guidance and model.classes go together"),
        (GUIDED, {"model.classes": 9}, "as many classes; .* with 10 classes"),
        (TOY, {"guidance.omega": 1.0}, "guidance needs labelled data; got Toy"),
        (TOY, {"guidance.omega": 1.0, "model.classes": 8}, "with 0 classes"),
        (GUIDED, {"proxy": "oracle"}, "guidance needs a proxy that knows labels; got oracle"),
        (GUIDED, {"model.guided_interval": True}, "needs its scale: model.guided must be true"),
        (TOLD, {"model.guided_interval": True}, "model.guided_interval go together; got False and"),
        (TOLD, {"guidance.random_interval": True}, "go together; got True and False"),
        (TOLD, {"evaluation.guidance_t_max": 0.8}, "must be 0 and 1 without .*; got 0.0 and 0.8"),
        (TOLD, {"evaluation.guidance_t_min": 0.6}, r"lie in \[0, 0.5\] and .*; got 0.6 and 1.0"),
        (TOLD, {"head.every_r": True}, "settings of a head need the proxy head; got VelocityHead"),
        (TOLD, {"head.weight": 0.0}, "head.weight must be positive and finite; got 0.0"),
        (
            GUIDED,
            {"proxy": "online", "guidance.mixing": "parameters"},
            "mixes parameters needs the proxy ema; got online",
        ),
    ],
)
def test_guidance_that_makes_no_sense_is_refused(experiment, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        experiment.override(changes)
    assert "\n" not in str(caught.value)


def test_an_experiment_of_the_first_schema_keeps_its_average():
    """Its ``ema`` was the decay of one update, of which there was one in ``ema_every`` steps."""
    old = DIGITS.override({"ema": 0.99995, "ema_every": 16}).to_dict()
    assert old.pop("schema") == 3
    read = Experiment.from_dict(old)
    assert read.ema**read.ema_every == pytest.approx(0.99995, rel=1e-12)
    assert Experiment.from_dict(read.to_dict()) == read
    every = {"ema": 0.99, "ema_every": 1}
    assert Experiment.from_dict(old | every).ema == 0.99


def of_version_2(loss, ddpm=None):
    """The preset digits as version 2 wrote it, with another objective."""
    old = WEIGHTED.to_dict() | {"schema": 2, "ddpm": ddpm}
    weight = {"kind": "AdaptiveWeight", "p": 1.0, "c": 0.01}
    old["loss"] = {"kind": "MeanFlowLoss", "weight": weight, "trace": None, "anchor": None} | loss
    return old


def test_objectives_of_the_second_schema_are_kinds_of_the_loss():
    assert Experiment.from_dict(of_version_2({"alpha": None})) == WEIGHTED
    schedule = {"kind": "AlphaSchedule", "value": 0.25}
    flow = Experiment.from_dict(of_version_2({"alpha": schedule}))
    weighted = AlphaFlowLoss(weight=AdaptiveWeight(p=1.0), alpha=AlphaSchedule(value=0.25))
    assert flow == replace(WEIGHTED, loss=weighted)
    old = of_version_2({"alpha": None}, {"kind": "DDPM", "levels": 20})
    settings = {"times.kind": "UniformTimes", "times.prob_equal": 1.0, "proxy": "ema"}
    sampler = {"evaluation.sampler": "ddim", "evaluation.sampling_steps": 5}
    for name, value in (settings | sampler).items():
        *above, leaf = name.split(".")
        part = old[above[0]] if above else old
        if leaf == "kind":
            part.clear()
        part[leaf] = value
    denoising = Experiment.from_dict(old)
    assert denoising.loss == DDPM(levels=20)
    assert WEIGHTED.override({"ddpm.levels": 20, **settings, **sampler}) == denoising


def test_settings_of_the_second_schema_are_understood():
    flow = WEIGHTED.override({"loss.alpha.value": 0.25})
    weighted = AlphaFlowLoss(weight=AdaptiveWeight(p=1.0), alpha=AlphaSchedule(value=0.25))
    assert flow.loss == weighted
    assert flow.override({"loss.alpha": None}) == WEIGHTED
    assert flow.override({"loss.alpha": None, "loss.alpha.begin": 0.5}).loss == replace(
        weighted, alpha=AlphaSchedule(begin=0.5)
    )
    assert WEIGHTED.override({"ddpm": None}) == WEIGHTED
    with pytest.raises(ValueError, match=r"unknown setting 'loss\.gamma'"):  # which it would ignore
        WEIGHTED.override({"loss.gamma": 0.5}).override({"loss.alpha.value": 0.25})


@pytest.mark.parametrize("schema", [0, 4, "2", None])
def test_an_unknown_schema_is_refused(schema):
    with pytest.raises(ValueError, match=f"schema must be 1 to 3; got {schema!r}: update vamf"):
        Experiment.from_dict(DIGITS.to_dict() | {"schema": schema})


def test_a_path_to_what_was_moved_along_follows_it(tmp_path: Path) -> None:
    """From beside the run, from above the storage, and under another name of the run's folder."""
    old, now = tmp_path / "old" / "runs" / "a", tmp_path / "new" / "here" / "runs" / "b"
    (now.parent / "frozen").mkdir(parents=True)
    (now.parents[1] / "photos").mkdir()
    there = tmp_path / "stays"
    there.touch()

    def placed(reference: Path, root: Path) -> Experiment:
        paths = {"reference": str(reference), "data.root": str(root)}
        return PRESETS["mnist"].override({"proxy": "reference", **paths})

    before = placed(old.parent / "frozen", old.parents[1] / "photos")
    after = placed(now.parent / "frozen", now.parents[1] / "photos")
    assert before.moved(old, now) == after
    assert after.differences(before) == {}
    kept = placed(there, tmp_path / "gone")
    assert kept.moved(old, now) == kept
    assert placed(there, there).differences(before).keys() == {"reference", "data.root"}
