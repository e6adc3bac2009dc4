"""Building blocks of networks against formulas written independently in NumPy and SciPy."""

import numpy as np
import pytest
import torch
from scipy.signal import upfirdn
from torch import nn

from vamf.flow.derivatives import total_derivative
from vamf.models.fast.unet import group_norm
from vamf.models.layers import (
    Conv2d,
    Dropout,
    GroupNorm,
    Linear,
    SelfAttention,
    downsample,
    initialise,
    sinusoid,
    upsample,
)
from vamf.rng import generator

TAPS = np.array([1.0, 3.0, 3.0, 1.0]) / 8


def normal(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=generator("layers", *shape), dtype=dtype)


def along(axis, x, function):
    return np.apply_along_axis(function, axis, x)


def down_formula(x):
    """Full convolution with the taps along rows and columns, every second value of its inside.

    y_i = sum_a h_a x_{2 i - 1 + a} is the full convolution at 2 i + 2, as h is symmetric.
    """

    def one(line):
        return np.convolve(line, TAPS)[2 : len(line) + 1 : 2]

    return along(-1, along(-2, x, one), one)


def up_formula(x):
    """Zeros between the values, then the taps doubled, along rows and columns."""

    def one(line):
        return upfirdn(2 * TAPS, line, up=2)[1 : 2 * len(line) + 1]

    return along(-1, along(-2, x, one), one)


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (8, 8)])
def test_downsample_is_the_fir_formula(size):
    x = normal(2, 3, *size)
    assert downsample(x).shape == (2, 3, size[0] // 2, size[1] // 2)
    np.testing.assert_allclose(downsample(x), down_formula(x.numpy()), rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4)])
def test_upsample_is_the_fir_formula(size):
    x = normal(2, 3, *size)
    assert upsample(x).shape == (2, 3, 2 * size[0], 2 * size[1])
    np.testing.assert_allclose(upsample(x), up_formula(x.numpy()), rtol=0, atol=1e-14)


def test_upsample_is_four_times_the_adjoint_of_downsample():
    x, y = normal(1, 2, 8, 8), normal(1, 2, 4, 4)
    left, right = 4 * (downsample(x) * y).sum(), (x * upsample(y)).sum()
    torch.testing.assert_close(left, right, rtol=1e-13, atol=1e-13)  # float64 rounding


def test_constants_are_kept_inside():
    """Only the zero padding of the border changes a constant; sums of eighths are exact."""
    ones = torch.ones(1, 2, 8, 8, dtype=torch.float64)
    assert (downsample(ones)[..., 1:-1, 1:-1] == 1).all()
    assert (upsample(ones)[..., 1:-1, 1:-1] == 1).all()
    assert downsample(ones)[0, 0, 0, 0] == (7 / 8) ** 2 and upsample(ones)[0, 0, 0, 0] == 9 / 16


def test_channels_are_resampled_alone():
    x = torch.zeros(1, 3, 4, 4)
    x[:, 1] = 1
    for resampled in (downsample(x), upsample(x)):
        assert (resampled[:, [0, 2]] == 0).all() and (resampled[:, 1] > 0).all()


@pytest.mark.parametrize("endpoint", [False, True])
@pytest.mark.parametrize("dim", [4, 6, 32])
def test_sinusoid_formula(dim, endpoint):
    t = np.linspace(0, 1, 7)
    half = dim // 2
    frequency = 10_000.0 ** (-np.arange(half) / (half - (1 if endpoint else 0)))
    expected = np.hstack([np.sin(np.outer(t, frequency)), np.cos(np.outer(t, frequency))])
    embedded = sinusoid(torch.from_numpy(t), dim, endpoint=endpoint)
    np.testing.assert_allclose(embedded, expected, rtol=1e-13, atol=1e-16)  # float64 rounding
    assert embedded.dtype == torch.float64 and frequency[0] == 1
    assert not endpoint or frequency[-1] == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(4, 1), (8, 2), (12, 3), (16, 4), (128, 32), (256, 32), (384, 32), (144, 16)],
)
def test_group_norm_has_at_most_32_groups_of_at_least_4_channels(channels, groups):
    norm = GroupNorm(channels)
    assert norm.groups == groups and channels % groups == 0


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # A few roundings of numbers of order 1 in each precision; bfloat16 rounds twice at 2^-8.
    [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)],
)
@pytest.mark.parametrize("channels", [4, 12, 32])
def test_plain_group_norm_is_the_fused_one(channels, dtype, tolerance):
    norm = GroupNorm(channels).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(1 + normal(channels) / 4)
        norm.bias.copy_(normal(channels) + 1)
    x = (3 * normal(2, channels, 4, 5) + 2).to(dtype)
    (plain,), eager = group_norm(norm, x, activate=False), norm(x)
    fused = torch.nn.functional.group_norm(x, norm.groups, norm.weight, norm.bias, norm.eps)
    assert plain.dtype == dtype and torch.equal(eager, fused)
    torch.testing.assert_close(plain, fused, rtol=tolerance, atol=tolerance)


def test_plain_group_norm_normalises():
    x = 5 * normal(2, 8, 4, 4) + 3
    groups = group_norm(GroupNorm(8).double(), x, activate=False)[0].reshape(2, 2, -1)
    torch.testing.assert_close(groups.mean(-1), torch.zeros(2, 2, dtype=x.dtype))
    # eps = 1e-6 beside a variance of 25
    variance = groups.var(-1, correction=0)
    torch.testing.assert_close(variance, torch.ones_like(variance), rtol=1e-6, atol=0)


def test_plain_group_norm_keeps_its_statistics_in_float32():
    """bfloat16 numbers near 100 are .5 apart: a mean of 100.2 rounded to one would shift all."""
    x = (100.2 + normal(1, 4, 16, 16)).to(torch.bfloat16)
    plain = group_norm(GroupNorm(4).to(torch.bfloat16), x, activate=False)[0].double()
    exact = (x.double() - x.double().mean()) / x.double().std(correction=0)
    torch.testing.assert_close(plain, exact, rtol=1e-2, atol=1e-2)  # bfloat16 rounding, 2^-8


@pytest.mark.parametrize("heads", [1, 2])
def test_self_attention_formula(heads):
    """x + proj(softmax(q k^T / sqrt(d)) v) over pixels, head by head."""
    c, d = 8, 8 // heads
    attention = SelfAttention(c, heads, out_gain=1.0).double()
    with torch.no_grad():
        attention.qkv.bias.copy_(normal(3 * c))
    x = normal(2, c, 3, 2)
    qkv = attention.qkv(attention.norm(x)).flatten(2)
    outputs = []
    for head in range(heads):
        rows = slice(head * d, (head + 1) * d)
        q, k, v = (part[:, rows] for part in qkv.chunk(3, dim=1))
        weights = torch.softmax(q.transpose(1, 2) @ k / d**0.5, dim=-1)  # (batch, query, key)
        outputs.append((weights @ v.transpose(1, 2)).transpose(1, 2))
    expected = x + attention.proj(torch.cat(outputs, 1).reshape(x.shape))
    torch.testing.assert_close(attention(x), expected, rtol=1e-12, atol=1e-13)  # rounding


@pytest.mark.parametrize("gain", [1.0, 0.1])
def test_initialise_is_glorot_uniform(gain):
    linear = initialise(nn.Linear(300, 100), gain=gain)
    bound = gain * (6 / 400) ** 0.5
    assert (linear.bias == 0).all() and linear.weight.abs().max() <= bound
    # A uniform variable on [-b, b] has variance b^2 / 3; its estimate over 30,000 errs by .5 %.
    assert linear.weight.var().item() == pytest.approx(bound**2 / 3, rel=0.03)


AFFINE = pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        (Linear(5, 7), nn.Linear(5, 7), (3, 5)),
        (Linear(5, 7, bias=False), nn.Linear(5, 7, bias=False), (3, 5)),
        (Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 5)),
        (Conv2d(4, 6, 1, stride=2), nn.Conv2d(4, 6, 1, stride=2), (2, 4, 5, 5)),
    ],
    ids=str,
)


def derivative(module, x, v, moving_weights):
    """module(x) and its derivative; the weights may depend on t, and then have a tangent too."""
    times = torch.full((len(x),), 0.5)

    def u(z, r, t):
        if not moving_weights:
            return module(z)
        state = dict(module.state_dict()) | {"weight": module.weight * (1 + t.sum())}
        return torch.func.functional_call(module, state, (z,))

    return total_derivative(u, x, times, times, v)


@AFFINE
@pytest.mark.parametrize("moving_weights", [False, True], ids=["input", "input and weights"])
def test_the_tangent_of_a_linear_layer_is_torchs(ours, theirs, shape, moving_weights):
    """To the bit."""
    theirs.load_state_dict(ours.state_dict())
    x, v = (normal(*shape, k, dtype=torch.float32)[..., 0] for k in (1, 2))
    with torch.no_grad():
        mine, other = (derivative(module, x, v, moving_weights) for module in (ours, theirs))
    assert torch.equal(mine[0], other[0]) and torch.equal(mine[1], other[1])


@AFFINE
def test_gradients_of_the_tangent_are_torchs(ours, theirs, shape):
    theirs.load_state_dict(ours.state_dict())
    x, v = (normal(*shape, k, dtype=torch.float32)[..., 0] for k in (1, 2))
    found = []
    for module in (ours, theirs):
        value, moved = derivative(module, x, v, moving_weights=False)
        loss = (value.square() * moved).sum()
        found.append(torch.autograd.grad(loss, list(module.parameters())))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("moving_weights", [False, True], ids=["input", "input and weights"])
def test_the_tangent_of_a_group_norm_is_torchs(moving_weights):
    ours = GroupNorm(12).double()
    theirs = nn.GroupNorm(ours.groups, 12, ours.eps).double()
    for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        parameter.data = other.data = normal(12)
    x, v = normal(3, 12, 5, 5, 1)[..., 0] + 3, normal(3, 12, 5, 5, 2)[..., 1]
    with torch.no_grad():
        mine, other = (derivative(module, x, v, moving_weights) for module in (ours, theirs))
    torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11)  # float64 rounding


def test_dropout_drops_the_tangents_of_what_it_drops():
    x, v = (normal(400, 6, k)[..., 0] for k in (1, 2))
    with torch.no_grad():
        y, dy = derivative(Dropout(0.25), x, v, moving_weights=False)
        n_constant, same = derivative(Dropout(0.25).eval(), x, v, moving_weights=False)
    kept = y / x
    torch.testing.assert_close(dy / v, kept, rtol=1e-12, atol=0)
    assert torch.equal(n_constant, x) and torch.equal(same, v)
    torch.testing.assert_close(kept.round(decimals=9).unique(), torch.tensor([0, 4 / 3]).double())
    assert 0.7 < (kept > 0).double().mean() < 0.8  # of 2,400: a standard deviation is 0.009
