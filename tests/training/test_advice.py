"""A training whose samples would be those of random weights is told so before it begins."""

import copy

import pytest
import torch

from vamf.compat.torch import map_tensors
from vamf.experiment_settings import Compute
from vamf.flow.objectives.alpha_flow import path_difference
from vamf.presets import PRESETS
from vamf.training.advice import advise
from vamf.training.step.precision import in_precision
from vamf.training.step.trainer import Trainer

DIGITS = PRESETS["digits"]


@pytest.mark.parametrize(("steps", "ema"), [(500, 0.998), (5500, 0.9999), (3, 0.9)])
def test_a_moving_average_that_is_too_slow_and_one_that_is_not(steps, ema, capfd):
    advise(DIGITS.override({"steps": steps, "ema": ema}))
    said = capfd.readouterr().out
    assert f"after {steps} steps" in said and f"{ema**steps:.0%}" in said
    enough = float(said.split("at most ")[1].split()[0])
    assert enough < ema and (0.03 < enough**steps <= 0.05 or steps == 3)
    advise(DIGITS.override({"steps": steps, "ema": enough}))
    advise(DIGITS.override({"steps": steps, "ema": ema, "init": "runs/trained"}))
    assert not capfd.readouterr().out


def test_no_preset_is_told(capfd):
    for experiment in PRESETS.values():
        advise(experiment)
    assert not capfd.readouterr().out


def mixed(**over):
    """Of a toy, with a target that is mixed."""
    plain = {"loss.gamma": 0.5, "loss.weight.p": 0.0, "beta.value": 1.0, "proxy": "online"}
    moving = {"optim.lr": 1e-3, "optim.warmup": 0, "ema": 0.9, "steps": 150, "seed": 42}
    return PRESETS["toy"].override(plain | moving | over)


def test_a_target_that_a_network_makes_itself_is_told(capfd):
    """And the loss of such a training grows; one that gets the note's advice learns."""
    losses = []
    for over, told in (({}, True), ({"proxy": "ema"}, False), ({"loss.weight.p": 1.0}, False)):
        experiment = mixed(**over)
        advise(experiment)
        assert ("--proxy ema" in capfd.readouterr().out) == told
        own = Trainer(experiment, experiment.data.load("train"))
        for _ in range(experiment.steps):
            own.train_step()
        losses.append(own.collect()["loss/per_dimension"])
    assert losses[0] > 100 * losses[1] and losses[1] < 20


@pytest.mark.parametrize(
    ("alpha", "precision", "told"),
    [
        ({"loss.alpha.kind": "AlphaSchedule"}, "bfloat16", True),
        ({"loss.alpha.kind": "AlphaSchedule"}, "float32", False),
        ({"loss.alpha.clamp": 0.05}, "bfloat16", False),
        ({"loss.alpha.value": 0.01}, "bfloat16", True),
        ({"loss.alpha.value": 0.0}, "bfloat16", False),
    ],
    ids=str,
)
def test_a_difference_that_is_mostly_rounding_error_is_told(alpha, precision, told, capfd):
    advise(DIGITS.override({"ema": 0.9, "compute.precision": precision, **alpha}))
    said = capfd.readouterr().out
    assert ("rounding error in bfloat16" in said) == told
    clamps = told and "loss.alpha.value" not in alpha  # a constant alpha takes no clamp
    assert ("--set loss.alpha.clamp=0.05" in said) == clamps


def test_that_difference_is_mostly_rounding_error():
    """Of a network that has learnt for a while; in float32 it is far smaller."""
    experiment = DIGITS.override({"batch": 16, "times.prob_equal": 0.25, "optim.warmup": 0})
    own = Trainer(experiment, experiment.data.load("train"))
    for _ in range(20):
        own.train_step()
    draws, _ = own.objective.draw(20)
    doubled = map_tensors(torch.Tensor.double, draws)
    net, exact, errors = own.net.eval(), copy.deepcopy(own.net).eval().double(), {}
    for alpha in (0.005, 0.05):
        true = path_difference(exact, doubled, 0.0, own.v_hat, alpha)[2]
        for precision in ("float32", "bfloat16"):
            u = in_precision(net, Compute(precision=precision))
            found = path_difference(u, draws, 0.0, own.v_hat, alpha)[2]
            errors[precision, alpha] = ((found - true).norm() / true.norm()).item()
    assert errors["bfloat16", 0.005] > 1 > 0.5 > errors["bfloat16", 0.05]
    assert errors["float32", 0.005] < 0.01
