"""A training whose samples would be those of random weights is told so before it begins."""

import pytest

from vamf.presets import PRESETS
from vamf.training.advice import advise

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
