"""The linear path: its ends, and its velocity as its derivative."""

import pytest
import torch

from vamf.flow.path import interpolate
from vamf.rng import generator


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
def test_path_runs_from_data_to_noise(shape):
    x, e = torch.randn(2, 3, *shape, generator=generator("path"))
    assert torch.equal(interpolate(x, e, torch.zeros(3))[0], x)
    assert torch.equal(interpolate(x, e, torch.ones(3))[0], e)


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
def test_each_sample_moves_by_its_velocity(shape):
    x, e = torch.randn(2, 3, *shape, generator=generator("path"), dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)
    h = torch.tensor([0.1, -0.2, 0.2], dtype=torch.float64)  # another one for each sample
    z, v = interpolate(x, e, t)
    later = interpolate(x, e, t + h)[0]
    step = h.reshape(-1, *[1] * len(shape)) * v
    torch.testing.assert_close(z + step, later, rtol=1e-14, atol=1e-14)  # float64 rounding
