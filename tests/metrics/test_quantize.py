"""Quantisation: exact on stored pixels, rounding in between, strict on what is not an image."""

import pytest
import torch

from vamf.data.dataset import to_float
from vamf.metrics.quantize import to_uint8

LEVELS = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def test_all_levels_round_trip():
    assert torch.equal(to_uint8(to_float(LEVELS)), LEVELS)


@pytest.mark.parametrize("offset", [-0.49, 0.49])
def test_rounds_to_the_nearest_level(offset):
    assert torch.equal(to_uint8(to_float(LEVELS) + offset / 127.5), LEVELS)


def test_halves_round_up_and_values_outside_are_clamped():
    x = torch.tensor([-1e9, -2.0, 0.0, 2.0, 1e9], dtype=torch.float64)
    assert to_uint8(x).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_divergence_is_refused(bad):
    x = torch.zeros(2, 1, 8, 8)
    x[0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match="images must be finite; got 1 of 128 values not finite"):
        to_uint8(x)


def test_pixels_are_refused():
    with pytest.raises(ValueError, match=r"images must be floating point.*; got torch.uint8"):
        to_uint8(LEVELS)
