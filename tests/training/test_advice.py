"""A training whose samples would be those of random weights is told so before it begins."""

import pytest

from vamf.presets import PRESETS
from vamf.training.advice import advise
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
