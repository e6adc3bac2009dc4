"""Resuming: which checkpoint is used, and which notes are recorded."""

import copy
import json
import os

import pytest
import torch
from helpers.tiny import same
from helpers.toy import TOY, Died, dies_at

from vamf.data.toys import Toy
from vamf.distributed import Workers
from vamf.errors import NonFiniteLoss
from vamf.presets import PRESETS
from vamf.training.checkpoints.checkpoint import Checkpoint
from vamf.training.checkpoints.manifest import entry
from vamf.training.checkpoints.resume import checkpoints, restore
from vamf.training.loop import Session, train
from vamf.training.step.trainer import Trainer


def begun(directory):
    """A run that dies after step 10, with checkpoints at 4 and 8."""
    with pytest.raises(Died):
        train(TOY, Session(directory=directory, report=dies_at(10)))
    assert [c.step for c in checkpoints(TOY, directory).all()] == [4, 8]
    return checkpoints(TOY, directory)


def resumed(directory, experiment=TOY):
    """The notes of the resumed run, and the steps that it reports."""
    notes, steps = [], []
    session = Session(
        directory=directory,
        report=lambda progress: steps.append(progress["step"]),
        note=lambda name, text: notes.append((name, text)),
    )
    train(experiment, session)
    return notes, steps


def test_a_truncated_checkpoint_is_noted_and_costs_only_its_steps(tmp_path):
    train(TOY, Session(directory=tmp_path / "twin"))
    found = begun(tmp_path / "cut")
    os.truncate(found.at(8).path / "state.pt", 1000)
    notes, steps = resumed(tmp_path / "cut")
    ((name, text),) = notes
    assert name == "checkpoint.damaged"
    assert text.startswith(f"checkpoint {found.at(8).path} is damaged: state.pt: 1000 of ")
    assert text.endswith("; resumes from step 4") and "\n" not in text
    assert steps == [6, 8, 10, 12]
    twin = checkpoints(TOY, tmp_path / "twin")
    assert [c.step for c in found.all()] == [4, 8, 12]
    for step in (8, 12):
        assert same(found.at(step).load(), twin.at(step).load())
    assert resumed(tmp_path / "cut")[0] == []  # said once


class Poisoned:
    """Data whose batch of step 10, from 1, holds one NaN."""

    def __init__(self, real):
        self.real, self.shape = real, real.shape

    def batch(self, step, *arguments):
        x = self.real.batch(step, *arguments)
        if step == 9:
            x[3, 0] = float("nan")
        return x

    def draw(self, *arguments):
        return self.real.draw(*arguments)


def test_a_nan_in_the_data_is_reported_and_costs_only_its_steps(tmp_path, monkeypatch):
    train(TOY, Session(directory=tmp_path / "twin"))
    load = Toy.load
    for _ in range(2):  # the second time from the checkpoint before it, which is as it was
        with monkeypatch.context() as patch, pytest.raises(NonFiniteLoss) as caught:
            patch.setattr(Toy, "load", lambda self, split: Poisoned(load(self, split)))
            train(TOY, Session(directory=tmp_path / "nan"))
        assert str(caught.value) == "the loss of step 10 is not finite; neither are its data"
        assert [c.step for c in checkpoints(TOY, tmp_path / "nan").all()] == [4, 8]
    notes, steps = resumed(tmp_path / "nan")
    assert (notes, steps) == ([], [10, 12])
    ours, twin = (checkpoints(TOY, tmp_path / name).at(12).load() for name in ("nan", "twin"))
    assert same(ours, twin)


def test_nothing_is_noted_of_a_plain_resumption(tmp_path):
    begun(tmp_path)
    assert resumed(tmp_path) == ([], [10, 12])


def test_a_run_without_an_intact_checkpoint_is_refused(tmp_path):
    found = begun(tmp_path)
    for checkpoint in found.all():
        os.truncate(checkpoint.path / "state.pt", 1000)
    with pytest.raises(ValueError, match="no checkpoint is intact; delete them") as caught:
        resumed(tmp_path)
    assert all(str(checkpoint.path) in str(caught.value) for checkpoint in found.all())
    assert "\n" not in str(caught.value)
    assert [c.step for c in found.all()] == [4, 8]  # nothing was touched


def test_another_experiment_is_refused_by_what_differs(tmp_path):
    found = begun(tmp_path)
    with pytest.raises(ValueError, match=r"is of another experiment: seed 0 there, 1 here"):
        resumed(tmp_path, TOY.override({"seed": 1}))
    assert [c.step for c in found.all()] == [4, 8]


def test_a_state_of_other_code_is_refused_in_one_line(tmp_path):
    """The experiment is the same, but the code of its network has changed."""
    found = begun(tmp_path)
    state = found.at(8).load()
    state["net"]["former.weight"] = state["net"].pop("head.weight")
    found.save(TOY, state, {})
    with pytest.raises(ValueError, match=r"does not fit this code: .*head\.weight") as caught:
        resumed(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 1), (2, 2)])
def test_another_number_of_workers_is_noted(before, now, tmp_path):
    """The other rank would record the same notes as rank 0."""

    class Alike(Workers):
        def gather(self, text):
            return [text] * self.world

    trainer = Trainer(TOY, TOY.data.load("train"), Workers())
    for _ in range(4):
        trainer.train_step()
    found, old, new = checkpoints(TOY, tmp_path), Workers(0, before), Alike(0, now)
    found.save(TOY, trainer.state_dict(), {}, old.described())
    notes, again = [], Trainer(TOY, TOY.data.load("train"), new)
    restore(again, found, lambda *note: notes.append(note))
    assert again.step == 4
    text = f"{old.described()} up to step 4, {new.described()} from there: no longer bit for bit"
    assert notes == ([] if before == now else [("workers.changed", text)])
    assert old.described().startswith(f"{before} x a CPU with ")


def test_another_number_of_threads_is_noted(tmp_path):
    """Another number of threads adds in another order, which changes the last bits."""
    begun(tmp_path)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        ((name, text),), _ = resumed(tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert name == "workers.changed"
    assert "1 x a CPU with 1 thread, torch" in text and "1 x a CPU with 2 threads, torch" in text


SMALL = PRESETS["digits"].override(
    {"model.channels": 8, "model.multipliers": [1], "model.blocks": 1, "batch": 4}
)


@pytest.mark.parametrize(
    ("experiment", "noted"),
    [
        (TOY, False),  # a network without a setting for dropout
        (SMALL.override({"model.dropout": 0.0}), False),
        (SMALL.override({"model.dropout": 0.2}), True),
    ],
    ids=["none", "off", "on"],
)
def test_only_runs_with_masks_of_dropout_go_on_otherwise(experiment, noted, tmp_path, monkeypatch):
    """Of an earlier vamf, whose experiments have another schema."""
    found, notes = checkpoints(experiment, tmp_path), []
    own = Trainer(experiment, experiment.data.load("train"))
    found.save(experiment, own.state_dict(), {}, own.workers.described())
    for schema in (1, 2):
        monkeypatch.setattr(Checkpoint, "schema", schema)
        notes.clear()
        restore(own, found, lambda *note: notes.append(note))
        assert [name for name, _ in notes] == ["code.changed"] * (noted and schema == 1)


def test_a_run_of_an_earlier_vamf_resumes_with_a_note(tmp_path):
    """Its map of augmentations was half as long, in the network, its average and its moments."""
    small = {"model.channels": 8, "model.multipliers": [1], "model.blocks": 1, "batch": 4}
    experiment = PRESETS["digits"].override(
        {
            **small,
            "model.augmentations": 6,
            "augment.kind": "Augmentation",
            "steps": 2,
            "checkpoint.every": 1,
            "evaluation.distance.samples": 40,
            "evaluation.variance_samples": 4,
            "evaluation.gradient_batches": 2,
        }
    )
    own, folder = Trainer(experiment, experiment.data.load("train")), tmp_path / "checkpoints"
    own.train_step()
    state = copy.deepcopy(own.state_dict())
    index = [name for name, _ in own.net.named_parameters()].index("augment.weight")
    moments = state["optimiser"]["state"][index]
    for values, name in (
        (state["net"], "augment.weight"),
        (state["ema"], "module.augment.weight"),
        (moments, "exp_avg"),
        (moments, "exp_avg_sq"),
    ):
        values[name] = values[name][:16]
    saved = checkpoints(experiment, tmp_path).save(experiment, state, {})
    assert saved.path.parent == folder
    path, manifest = saved.path / "experiment.json", saved.path / "manifest.json"
    path.write_text(json.dumps({n: v for n, v in experiment.to_dict().items() if n != "schema"}))
    entries = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(entries | {"experiment.json": entry(path)}))
    notes, _ = resumed(tmp_path, experiment)
    assert [name for name, _ in notes] == ["code.changed"] and "up to step 1" in notes[0][1]
    weights = checkpoints(experiment, tmp_path).latest().load()["net"]["augment.weight"]
    assert weights.shape == (32, 6) and weights[16:].any()
