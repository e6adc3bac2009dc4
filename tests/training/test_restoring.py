"""Going on from what is intact: which checkpoint it is, and what is said about it."""

import os

import pytest
from tiny import same

from vamf.data.toys import Toy
from vamf.distributed import Workers
from vamf.experiment import Checkpoints, Evaluation, Experiment
from vamf.metrics.distances import SlicedWasserstein
from vamf.models.mlp import MLPConfig
from vamf.training.loop import Session, train
from vamf.training.restoring import checkpoints, restore
from vamf.training.trainer import Trainer

TOY = Experiment(
    data=Toy(),
    model=MLPConfig(hidden=(8,), embedding=4),
    batch=8,
    steps=12,
    log_every=2,
    ema=0.9,
    evaluation=Evaluation(
        every=100,
        distance=SlicedWasserstein(samples=8, directions=2, repetitions=2),
        variance_samples=4,
        gradient_batches=2,
    ),
    checkpoint=Checkpoints(every=4, keep=5),
)


class Died(Exception):
    pass


def begun(directory):
    """A run that dies after step 10, with checkpoints at 4 and 8."""

    def die(progress):
        if progress["step"] == 10:
            raise Died

    with pytest.raises(Died):
        train(TOY, Session(directory=directory, report=die))
    assert [c.step for c in checkpoints(TOY, directory).all()] == [4, 8]
    return checkpoints(TOY, directory)


def resumed(directory, experiment=TOY):
    """What the resumed run notes, and the steps that it reports."""
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
    assert text.endswith("; goes on from step 4") and "\n" not in text
    assert steps == [6, 8, 10, 12]
    twin = checkpoints(TOY, tmp_path / "twin")
    assert [c.step for c in found.all()] == [4, 8, 12]
    for step in (8, 12):
        assert same(found.at(step).load(), twin.at(step).load())
    assert resumed(tmp_path / "cut")[0] == []  # said once


def test_nothing_is_noted_of_a_plain_resumption(tmp_path):
    begun(tmp_path)
    assert resumed(tmp_path) == ([], [10, 12])


def test_a_run_without_an_intact_checkpoint_is_refused(tmp_path):
    found = begun(tmp_path)
    for checkpoint in found.all():
        os.truncate(checkpoint.path / "state.pt", 1000)
    with pytest.raises(ValueError, match="no checkpoint is intact, delete them") as caught:
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
    """The experiment is the same, but its network has other parts than it had."""
    found = begun(tmp_path)
    state = found.at(8).load()
    state["net"]["former.weight"] = state["net"].pop("head.weight")
    found.save(TOY, state, {})
    with pytest.raises(ValueError, match=r"does not fit this code: .*head\.weight") as caught:
        resumed(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 1), (2, 2)])
def test_another_number_of_workers_is_noted(before, now, tmp_path):
    """What the other rank would say is what rank 0 says."""

    class Alike(Workers):
        def gather(self, text):
            return [text] * self.world

    trainer = Trainer(TOY, TOY.data.load("train"), Workers())
    for _ in range(4):
        trainer.train_step()
    found = checkpoints(TOY, tmp_path)
    found.save(TOY, trainer.state_dict(), {}, workers=before)
    notes, again = [], Trainer(TOY, TOY.data.load("train"), Alike(0, now))
    restore(again, found, lambda *note: notes.append(note))
    assert again.step == 4
    expected = f"{before} up to step 4, {now} from there: no longer bit for bit"
    assert notes == ([] if before == now else [("workers.changed", expected)])
