"""Checkpoints in the background: a copy of the state, one at a time, errors raised."""

import threading

import pytest
import torch

from vamf.data.toys import Toy
from vamf.experiment import Experiment
from vamf.experiment_settings import Evaluation
from vamf.metrics.distances import SlicedWasserstein
from vamf.models.mlp import MLPConfig
from vamf.training.checkpoints.async_saver import Saver, Snapshot
from vamf.training.checkpoints.checkpoint import CheckpointFolder

EXPERIMENT = Experiment(
    data=Toy(),
    model=MLPConfig(hidden=(4,), embedding=2),
    evaluation=Evaluation(distance=SlicedWasserstein(samples=8)),
)


def state(step):
    return {"step": step, "net": {"w": torch.full((3,), float(step))}, "list": [torch.ones(1), 2]}


class Slow:
    """A folder on a slow disk: a save waits until the test releases it."""

    def __init__(self):
        self.saved, self.through, self.at_once, self.most = [], threading.Semaphore(0), 0, 0

    def save(self, experiment, state, metrics, made_on):
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        assert self.through.acquire(timeout=60)
        self.at_once -= 1
        self.saved.append((state["step"], state["net"]["w"].tolist(), dict(metrics), made_on))


def folder(path):
    return CheckpointFolder(path=path / "checkpoints", keep=9, best_by="eval/sw1_n8")


def test_a_snapshot_is_of_the_state_as_it_was():
    weights = torch.arange(6.0).reshape(2, 3).t()  # strides of its own
    original = {"step": 3, "net": {"w": weights}, "list": [weights[0], "text"]}
    held = Snapshot.of(original).ready()
    weights.add_(1)
    assert held["step"] == 3 and held["list"][1] == "text"
    assert held["net"]["w"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert held["list"][0].tolist() == [0, 3]
    assert held["net"]["w"].stride() == weights.stride()


def test_training_continues_while_a_checkpoint_is_written():
    slow, living = Slow(), state(1)
    with Saver(slow, "2 x a CPU") as saver:
        saver.save(EXPERIMENT, living, {"loss": 1.0})  # returns although nothing is written
        assert slow.saved == []
        living["net"]["w"] += 100
        slow.through.release()
    assert slow.saved == [(1, [1, 1, 1], {"loss": 1.0}, "2 x a CPU")]


def test_two_are_never_written_at_once():
    slow = Slow()
    with Saver(slow) as saver:
        saver.save(EXPERIMENT, state(1), {})
        second = threading.Thread(target=saver.save, args=(EXPERIMENT, state(2), {}))
        second.start()
        second.join(0.2)
        assert second.is_alive()  # it waits for the first one
        slow.through.release()
        second.join(60)
        assert not second.is_alive() and [step for step, *_ in slow.saved] == [1]
        slow.through.release()
    assert [step for step, *_ in slow.saved] == [1, 2] and slow.most == 1


def test_all_is_written_when_the_block_ends(tmp_path):
    with Saver(folder(tmp_path)) as saver:
        for step in (1, 2, 3):
            saver.save(EXPERIMENT, state(step), {})
        saver.drain()
        assert folder(tmp_path).latest().load()["net"]["w"].tolist() == [3, 3, 3]
        saver.save(EXPERIMENT, state(4), {})
    assert [c.step for c in folder(tmp_path).all()] == [1, 2, 3, 4]


@pytest.mark.parametrize("when", ["save", "drain", "end"])
def test_what_goes_wrong_is_raised_by_what_comes_next(when, tmp_path):
    """A file where the folder should be: the kernel refuses."""
    (tmp_path / "checkpoints").write_text("")
    saver = Saver(folder(tmp_path))
    saver.save(EXPERIMENT, state(1), {})
    with pytest.raises(OSError, match="step_00000001"):
        if when == "save":
            saver.save(EXPERIMENT, state(2), {})
        elif when == "drain":
            saver.drain()
        else:
            with saver:
                pass
    saver.drain()  # said once


def test_what_ended_the_run_is_not_hidden_by_its_checkpoint(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(KeyError, match="first"), Saver(folder(tmp_path)) as saver:
        saver.save(EXPERIMENT, state(1), {})
        raise KeyError("first")


def test_a_run_that_fails_still_writes_what_was_begun(tmp_path):
    with pytest.raises(KeyError), Saver(folder(tmp_path)) as saver:
        saver.save(EXPERIMENT, state(1), {})
        raise KeyError
    assert folder(tmp_path).latest().step == 1
