"""Compiled steps of objectives that move over training; tangents are carried without a GPU, too."""

import pytest
import torch
from helpers.toy import after

from vamf.presets import PRESETS
from vamf.training.step.moving import moved, programs
from vamf.training.step.trainer import Trainer

CPU = torch.device("cpu")
DIGITS = PRESETS["digits"].override(
    {"model.channels": 16, "model.dropout": 0.1, "batch": 16, "steps": 12, "beta.value": 0.5}
    | {"optim.warmup": 0, "times.prob_equal": 0.25, "proxy": "ema"}
)
MOVING = [
    {"loss.alpha.kind": "AlphaSchedule", "loss.alpha.sharpness": 14.0},
    {"loss.alpha.kind": "AlphaSchedule", "loss.alpha.value": 0.3},
    {"loss.tangent_warmup": 0.7},
    {"loss.tangent_warmup": 0.7, "loss.anchor.weight": 0.1},
]


@pytest.mark.parametrize("over", MOVING, ids=str)
def test_compiled_steps_are_those_that_are_not(over):
    """Whatever moves, through each of its programs; by the losses and the weights at the end."""
    found = []
    for compiled in (False, True):
        experiment = DIGITS.override(over | {"compute.compile": compiled})
        own = Trainer(experiment, experiment.data.load("train"))
        losses = [after(1, own).collect()["loss/train"] for _ in range(experiment.steps)]
        found.append((torch.tensor(losses), torch.cat([p.flatten() for p in own.net.parameters()])))
    (eager, plain), (fast, weights) = found
    torch.testing.assert_close(fast, eager, rtol=1e-4, atol=0)
    start = Trainer(experiment, experiment.data.load("train")).net.parameters()
    way = (plain - torch.cat([p.flatten() for p in start])).norm()
    assert (weights - plain).norm() < 1e-2 * way


def test_each_step_has_one_of_the_programs():
    alpha = DIGITS.override(MOVING[0] | {"steps": 1000, "loss.alpha.finish": 0.9})
    one, between, zero = programs(alpha, True, CPU)
    assert (one, zero) == (1, 0) and isinstance(between, torch.Tensor)
    for step in range(1000):
        now, exact = moved(alpha, step, True, CPU), alpha.loss.alpha(step / 1000)
        assert now == exact and isinstance(now, torch.Tensor) == (0 < exact < 1)
    assert programs(alpha, False, CPU) == [0.0] and moved(alpha, 500, False, CPU) == 0.5
    rising, over = programs(DIGITS.override(MOVING[2]), True, CPU)
    assert rising == 0 and isinstance(rising, torch.Tensor) and over == 1
    assert programs(DIGITS, True, CPU) == [None]
