"""A run keeps its evaluations, with the seconds of the steps before them."""

import pytest
from helpers.toy import TOY, Died, dies_at

from vamf.metrics.distances import Measurement
from vamf.run_layout import EVALUATIONS
from vamf.training import elapsed_time, loop
from vamf.training.evaluation_log import Evaluated, add, evaluations
from vamf.training.loop import Session, train


def measured(value):
    return {"eval/distance": Measurement(value, 0.5)}


def test_seconds_of_steps_add_up_and_a_resumed_run_goes_on(tmp_path):
    add(tmp_path, 10, 0.5, measured(3.0))
    add(tmp_path, 30, 0.25, measured(2.0), gib=7.5)
    add(tmp_path, 40, 1.0, measured(1.0))
    assert evaluations(tmp_path) == [
        Evaluated(10, 5.0, None, measured(3.0)),
        Evaluated(30, 10.0, 7.5, measured(2.0)),
        Evaluated(40, 20.0, None, measured(1.0)),
    ]
    add(tmp_path, 30, 2.0, measured(1.5))  # from a checkpoint at step 20
    assert evaluations(tmp_path) == [
        Evaluated(10, 5.0, None, measured(3.0)),
        Evaluated(30, 45.0, None, measured(1.5)),
    ]


@pytest.mark.parametrize("text", [None, "", '{"step": 3', '{"step": 3}'])
def test_what_cannot_be_read_is_no_evaluation(text, tmp_path):
    if text is not None:
        (tmp_path / EVALUATIONS).write_text(text)
    assert evaluations(tmp_path) == []


def test_a_run_keeps_what_it_measures_once_however_often_it_dies(tmp_path, monkeypatch):
    """Each step takes a second here, and each evaluation a hundred."""
    now = [0.0]

    def wait(seconds, function):
        def waiting(*args):
            now[0] += seconds
            return function(*args)

        return waiting

    monkeypatch.setattr(elapsed_time.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(loop.Trainer, "train_step", wait(1, loop.Trainer.train_step))
    monkeypatch.setattr(loop, "evaluate", wait(100, loop.evaluate))
    toy = TOY.override({"evaluation.every": 3, "checkpoint.every": 4})
    for step in (9, 10):
        with pytest.raises(Died):
            train(toy, Session(directory=tmp_path, report=dies_at(step)))
    summary = train(toy, Session(directory=tmp_path))
    kept = evaluations(tmp_path)
    assert [(one.step, one.seconds) for one in kept] == [(n, n) for n in (3, 6, 9, 12)]
    assert kept[-1].metrics == summary.metrics and kept[0].metrics != kept[1].metrics
