"""What jobs.bench measures: the right steps, often enough, on stand-ins where data are missing."""

import numpy as np
import pytest
import torch
from helpers.pictures import write_images
from helpers.tiny import TINY

from jobs import cli
from vamf.benchmarks import evaluation_time, step_time, whole_runs
from vamf.benchmarks.loop_delays import waits
from vamf.benchmarks.step_time import Subject, variants
from vamf.benchmarks.synthetic_inputs import Untrained, replace_missing_data
from vamf.benchmarks.timing import Row, Table, time_steps
from vamf.metrics.extractors import RandomExtractor, metric_key
from vamf.presets import PRESETS

CPU = torch.device("cpu")
TOY = PRESETS["toy"].override({"model.hidden": (8,), "model.embedding": 4, "batch": 8})


def test_steps_are_repeated_in_turn():
    calls = []
    timed = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = time_steps(timed, CPU, 3, together=4)
    assert calls == [*"aaaabbbb"] * (2 + 3)  # two rounds warm up
    assert set(seconds) == {*"ab"} and all(s > 0 for s in seconds.values())


def test_compiled_steps_are_warm_when_cuda_graphs_are_captured(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    for compiled in (False, True):
        experiment = TOY.override({"compute.compile": compiled})
        step, mib = step_time._ready(experiment, None, CPU)
        assert (step.__self__.step >= 5) == compiled and mib is None
    assert step_time.TOGETHER["cuda"] == 16 and Subject(TOY, CPU, 1).together == 1


def test_variants_are_those_of_the_preset():
    plain = variants(TOY)
    assert len(plain) == 10 and not any(e.compute.compile for e, _ in plain.values())
    own = [e for e, loss in plain.values() if loss is None]
    assert [e.beta.value for e in own] == [0, 0, 0.5, 0, 0, 0, 0, 0]
    assert [e.times.prob_equal for e in own] == [1, 0.25, 0.25, 0.75, 0.25, 0.25, 0.25, 0.25]
    assert [e.loss.mixes_tangent for e in own] == [True] * 5 + [False] * 3
    compiled = variants(TOY.override({"compute.compile": True}))
    parts, again = (
        f"own objective, {how}, compiled" for how in ("4 micro-batches", "checkpointing")
    )
    assert [*compiled][8:] == [*plain]
    assert [name for name, (e, _) in compiled.items() if e.compute.compile] == [
        *(f"{name}, compiled" for name in [*plain][:7]),
        parts,
    ]
    assert compiled[parts][0].compute.accumulate == 4
    own = {"loss.kind": "SemigroupLoss"}
    assert [e.loss for e, _ in variants(TOY.override(own)).values()] == [
        e.loss for e, _ in plain.values()
    ]
    # Those that know no labels are left out; a DDPM has no beta.
    assert len(variants(PRESETS["cifar10_cond"])) == 16
    assert [*variants(PRESETS["cifar10_ddpm"])] == ["DDPM, compiled", parts, again, "DDPM"]


@pytest.mark.parametrize("alone", [False, True])
def test_what_does_not_fit_is_said(monkeypatch, alone):
    """Memory ends in one variant; the others are timed, in turn or each alone."""
    monkeypatch.setattr(step_time, "ALONE", {"cpu"} if alone else {})
    timed, time = [], step_time.time_steps
    monkeypatch.setattr(
        step_time,
        "time_steps",
        lambda steps, *a, **k: timed.append(len(steps)) or time(steps, *a, **k),
    )
    make = step_time._step

    def scarce(experiment, device, loss):
        if loss is step_time._with_graph:
            raise torch.OutOfMemoryError("GPU")
        return make(experiment, device, loss)

    monkeypatch.setattr(step_time, "_step", scarce)
    table = step_time.steps(Subject(TOY, CPU, 1))
    assert table.notes == ("MeanFlow by the textbook: out of memory at batch 8",)
    assert sum(row.unit == "ms" for row in table.rows.values()) == 9
    assert timed == ([1] * 9 if alone else [9])
    monkeypatch.setattr(step_time, "variants", lambda _: {"a": (TOY, step_time._with_graph)})
    with pytest.raises(ValueError, match="no step can be timed: a: out of memory at batch 8"):
        step_time.steps(Subject(TOY, CPU, 1))


@pytest.mark.parametrize("name", ["_whole_batch", "_with_graph"])
def test_what_replaces_the_objective_takes_the_same_steps(name):
    """MeanFlow's gradient is the same however it is computed; so is the average, every 2 steps."""
    experiment = TOY.override({"beta.value": 0.0, "ema_every": 2})
    own = step_time.trainer_of(experiment, CPU)
    step = step_time._step(experiment, CPU, getattr(step_time, name))
    other = step.__self__
    for _ in range(3):
        own.train_step(), step()
        for ours, theirs in ((own.net, other.net), (own.ema, other.ema)):
            pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
            for a, b in pairs:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)  # float32, through Adam
    assert own.step == other.step == 3


@pytest.mark.parametrize("name", ["_whole_batch", "_with_graph"])
def test_what_replaces_the_objective_is_computed_in_its_precision(name, monkeypatch):
    experiment, seen = TOY.override({"compute.precision": "bfloat16"}), set()
    step = step_time._step(experiment, CPU, getattr(step_time, name))
    linear = torch.nn.functional.linear

    def noted(x, weight, *rest):
        seen.add(weight.dtype)
        return linear(x, weight, *rest)

    monkeypatch.setattr(torch.nn.functional, "linear", noted)
    step()
    assert torch.bfloat16 in seen and torch.float32 not in seen


@pytest.mark.parametrize(
    "changes",
    [{"loss.anchor.weight": 0.1}, {"loss.trace.scale": 1.0}, {"loss.alpha.sharpness": 25.0}],
    ids=lambda changes: next(iter(changes)),
)
def test_objectives_with_further_inputs_have_all_variants(changes):
    experiment = TOY.override(changes)
    for own, loss in variants(experiment).values():
        step_time._step(own, CPU, loss)()


def test_a_variant_that_is_refused_is_left_out_with_a_note(monkeypatch):
    def refused(objective, inputs):
        raise ValueError("it needs labels\nof each sample")

    two = {"own": (TOY, None), "other": (TOY, refused)}
    monkeypatch.setattr(step_time, "variants", lambda _: two)
    table = step_time.steps(Subject(TOY, CPU, 1))
    assert table.notes == ("other: it needs labels",)
    assert [name for name, row in table.rows.items() if row.unit == "ms"] == ["own"]


def test_an_earlier_measurement_is_printed_beside_the_new_one():
    rows = {
        "a": Row(value=2.0, unit="ms", ratio=1.0, mib=7),
        "b": Row(value=3, unit="s"),
    }
    before = {"a": Row(value=4.0, unit="ms", ratio=1.5), "c": Row(value=1, unit="s")}
    a, b = Table(rows=rows).format(before).splitlines()
    assert " ".join(a.split()) == "a 2.00 ms 1.00 x 7 MiB before 4.00 ms, 1.50 x"
    assert b.split() == ["b", "3.00", "s"]


def test_files_are_waited_for_and_memory_is_not(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (64, 8, 8)).astype("u1")
    write_images(tmp_path / "a", pixels)
    folder = {"data.kind": "ImageFolder", "data.root": str(tmp_path / "a"), "data.channels": 1}
    folder |= {"data.size": 8, "evaluation.distance.extractor": "randconv64_v1"}
    streamed = TINY.override({**folder, "data.memory_gb": 0.0})
    share, step = waits(Subject(streamed, CPU, 1)).rows.values()
    assert 0 < share.value <= 100 and share.unit == "%" and step.value > 0
    (row,), notes = waits(Subject(TINY, CPU, 1)).rows.values(), waits(Subject(TINY, CPU, 1)).notes
    assert row.value > 0 and notes == ("no step waits for files: the data are in memory",)


@pytest.mark.parametrize("preset", ["mnist", "cifar10_cond", "imagenet_dit_b4", "digits", "toy"])
def test_missing_data_are_replaced(preset, tmp_path):
    missing = preset not in ("digits", "toy")
    changes = {"data.root": str(tmp_path / "absent")} if missing else {}
    experiment = PRESETS[preset].override(changes)
    settings, notes = replace_missing_data(experiment, tmp_path / "data")
    assert bool(settings) == bool(notes) == missing
    if missing:
        assert notes[0].startswith("1000 random") and str(tmp_path / "absent") in notes[0]
    other = experiment.override({**settings, "batch": 4})
    data = other.data.load("train")
    assert data.batch(0, 4, 0, CPU).shape == (4, *experiment.data.shape)
    if experiment.model.classes:
        assert {*range(experiment.model.classes)} == {*data.labels.tolist()}
    # The options of the runs of jobs.train make them the same experiment.
    assert cli.changed(PRESETS[preset], whole_runs._settings(preset, other)) == other


def test_an_untrained_inception_is_no_fid():
    extractor = Untrained()
    assert extractor(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 2048)
    with pytest.raises(ValueError, match="a prefix beginning with 'fid' must belong"):
        metric_key(extractor, 1000, "train")


def test_a_replaced_extractor_sees_all_samples_of_an_evaluation():
    seen = []

    class Counting(RandomExtractor):
        def __call__(self, images):
            seen.append(len(images))
            return super().__call__(images)

    evaluation_time._whole(step_time.trainer_of(TINY, CPU), Counting())()
    assert sum(seen) == TINY.evaluation.distance.samples


def test_long_evaluations_are_not_run(monkeypatch):
    monkeypatch.setattr(evaluation_time, "TOO_LONG_S", 0.0)
    table = evaluation_time.evaluation(Subject(TINY, CPU, 1))
    assert [*table.rows] == ["features of digits_cnn64_v1"]
    assert "one evaluation: not run" in table.notes[-1]
