"""Variances of losses and gradients against closed forms and simulation."""

import math

import pytest
import torch

from vamf.diagnostics import variance
from vamf.diagnostics.variance import (
    GAP,
    TIMES,
    evaluation_draws,
    flat_gradient,
    mean_gradient,
    sample_losses,
    trace_with_error,
    variance_with_error,
)
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.flow.objectives.terms import Draws
from vamf.flow.path import interpolate
from vamf.models.mlp import MLPConfig
from vamf.rng import generator
from vamf.typing import expand_like


def normal(*shape, key="variance", dtype=torch.float64):
    return torch.randn(*shape, generator=generator(key, *shape), dtype=dtype)


@pytest.mark.parametrize("t", TIMES)
def test_evaluation_draws_keep_the_gap_and_stay_at_or_above_0(t):
    draws = evaluation_draws(torch.zeros(3, 2), torch.ones(3, 2), t)
    assert draws.n_equal == 0 and (draws.t == t).all()
    torch.testing.assert_close(draws.r, torch.full((3,), max(t - GAP, 0.0)))
    assert draws.r.min() >= 0 and TIMES == (0.1, 0.3, 0.5, 0.7, 0.9)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_sample_losses_in_closed_form(beta):
    """u = t z has du/dt = t v_tan + z, hence V = t z + (t - r) (t v_tan + z) per axis."""
    x, e = normal(2, 6, 1, 2, 2)
    draws = evaluation_draws(x, e, 0.7)

    def v_hat(z, t):
        return z**2

    z, v_cond = interpolate(x, e, draws.t)
    v_tan = (1 - beta) * v_cond + beta * z**2
    compound = 0.7 * z + 0.25 * (0.7 * v_tan + z)
    expected = (compound - v_cond).pow(2).sum((1, 2, 3)) / 4
    losses = sample_losses(lambda z, r, t: expand_like(t, z) * z, draws, beta, v_hat)
    assert losses.dtype == torch.float64 and losses.shape == (6,)
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-7)  # times are in float32


def test_one_sample_alone_has_the_loss_that_it_has_in_a_batch():
    draws = evaluation_draws(*normal(2, 5, 3), 0.6)

    def u(z, r, t):
        return torch.sin(z) * (t * (1 + r))[:, None]

    whole = sample_losses(u, draws, 0.3, lambda z, t: z)
    alone = torch.cat([sample_losses(u, one, 0.3, lambda z, t: z) for one in draws.parts(1)])
    torch.testing.assert_close(alone, whole, rtol=1e-12, atol=0)


def test_sample_losses_keep_no_graph():
    scale = torch.ones((), requires_grad=True)
    draws = evaluation_draws(*normal(2, 3, 2), 0.5)
    assert not sample_losses(lambda z, r, t: scale * z, draws, 0.5, lambda z, t: z).requires_grad


def test_variance_in_closed_form():
    """The values 0, 0, 0, 4 have mean 1, s^2 = 12 / 3 and m4 = (3 + 81) / 4 = 21."""
    value, error = variance_with_error(torch.tensor([0.0, 0.0, 0.0, 4.0], dtype=torch.float64))
    assert value == pytest.approx(4)
    assert error == pytest.approx(math.sqrt((21 - 16 * (4 - 3) / (4 - 1)) / 4))


def test_constant_values_have_no_variance():
    assert variance_with_error(torch.full((5,), 3.0, dtype=torch.float64)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("power", "variance"),
    # Of a standard normal N: N itself has variance 1, N^2 has 2 (a chi-squared of one degree).
    [(1, 1.0), (2, 2.0)],
)
def test_variance_and_its_error_against_repetitions(power, variance):
    repetitions, n = 2000, 512
    values = normal(repetitions, n).pow(power)
    pairs = torch.tensor([variance_with_error(row) for row in values], dtype=torch.float64)
    spread = pairs[:, 0].std()
    # The mean of 2000 repetitions errs by spread / 45: 5 such errors.
    assert abs(pairs[:, 0].mean() - variance) < 5 * spread / math.sqrt(repetitions)
    # The estimate takes s^4 for the variance squared and m4 from heavy tails: 10 % covers the
    # bias of order 1 / n and the error of the spread itself, 1 / sqrt(2 * 2000) = 1.6 % and more.
    assert pairs[:, 1].square().mean().sqrt().item() == pytest.approx(spread.item(), rel=0.1)


def test_standard_error_of_normal_values_is_that_of_a_chi_squared():
    """Var(s^2) = 2 / (n - 1) for standard normal values."""
    n = 200_000
    error = variance_with_error(normal(n))[1]
    assert error == pytest.approx(math.sqrt(2 / (n - 1)), rel=0.02)  # m4 errs by sqrt(96 / n)


def test_trace_in_closed_form():
    """Two gradients, 1 apart along two of four parameters: (1/4 + 1/4) * 2 / (2 - 1) / 4."""
    gradients = torch.tensor([[0.0, 1.0, 5.0, 7.0], [1.0, 0.0, 5.0, 7.0]])
    value, error = trace_with_error(gradients)
    assert value == pytest.approx(0.25) and math.isnan(error)


def test_trace_is_that_of_the_covariance_matrix():
    gradients = normal(6, 5) * torch.arange(1.0, 6.0) + 100
    value, _ = trace_with_error(gradients)
    assert value == pytest.approx(torch.cov(gradients.T).trace().item() / 5, rel=1e-12)


def test_trace_error_is_the_jackknife():
    """By its definition: the estimate again, without each batch in turn."""
    gradients = normal(7, 5) + 3
    rest = [torch.cat([gradients[:i], gradients[i + 1 :]]) for i in range(7)]
    without = torch.tensor([trace_with_error(g)[0] for g in rest], dtype=torch.float64)
    expected = (6 / 7 * (without - without.mean()).square().sum()).sqrt().item()
    assert trace_with_error(gradients)[1] == pytest.approx(expected, rel=1e-10)


def test_trace_and_its_error_against_repetitions():
    repetitions, k = 1500, 8
    scales = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    pairs = torch.tensor([trace_with_error(g) for g in normal(repetitions, k, 3) * scales + 1])
    value, errors = pairs.double().unbind(1)
    exact, spread = scales.square().mean(), value.std()
    assert abs(value.mean() - exact) < 5 * spread / math.sqrt(repetitions)
    # Var(trace) = 2 sum s^4 / (k - 1) / P^2 for normal gradients.
    closed = (2 * scales.pow(4).sum() / (k - 1)).sqrt() / 3
    assert spread.item() == pytest.approx(closed.item(), rel=0.1)
    # A jackknife of 8 is biased upward by about 1 / k and noisy itself: within a quarter.
    assert errors.square().mean().sqrt().item() == pytest.approx(spread.item(), rel=0.25)


def test_trace_of_large_equal_gradients_does_not_cancel():
    """float32 gradients are summed in float64: 1e4 apart from 0, with a spread of 1e-2."""
    gradients = (1e4 + 1e-2 * normal(16, 1000)).float()
    exact = gradients.double().var(0).mean().item()
    assert trace_with_error(gradients)[0] == pytest.approx(exact, rel=1e-9)


def test_flat_gradient_joins_the_parameters_in_order():
    a = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    b = torch.nn.Parameter(torch.tensor(5.0))
    gradient = flat_gradient((a**2).sum() + 3 * b, [a, b])
    assert gradient.tolist() == [2, 4, 6, 8, 3]
    assert a.grad is None and b.grad is None  # what training accumulates stays untouched


@pytest.mark.parametrize("n_equal", [0, 3, 5, 11])
@pytest.mark.parametrize("part", [1, 4, 32])
def test_the_gradient_of_a_batch_is_that_of_its_parts(monkeypatch, n_equal, part):
    """By the training's own loss; a batch that fits as it is trained need not fit eagerly."""
    monkeypatch.setattr(variance, "NUMBERS", 2 * part)
    net = MLPConfig(hidden=(8,), embedding=4).build((2,)).double()
    torch.nn.init.normal_(net.head.weight, generator=generator("head"))
    x, e = normal(2, 11, 2)
    t = normal(11, key="t").sigmoid()
    r = torch.cat([t[:n_equal], 0.5 * t[n_equal:]])
    draws, seen = Draws(x, e, r, t, n_equal), []

    def v_hat(z, t):
        return z**2

    net.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    for beta in (0.3, 0.5 * t):
        seen.clear()
        found = mean_gradient(net, draws, beta, v_hat)
        assert max(seen) == min(part, 11)
        loss = MeanFlowLoss()(net, draws, beta=beta, v_hat=v_hat).loss / 2
        torch.testing.assert_close(found, flat_gradient(loss, net.parameters()))


def test_the_trace_of_large_gradients_is_taken_piece_by_piece(monkeypatch):
    gradients = normal(5, 11)
    whole = trace_with_error(gradients)
    monkeypatch.setattr(variance, "COLUMNS", 4)
    assert trace_with_error(gradients) == pytest.approx(whole, rel=1e-12)


def test_a_gradient_is_0_where_a_loss_does_not_depend_on_a_parameter():
    used, unused = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    gradient = variance.flat_gradient(used.square().sum(), [used, unused])
    assert gradient.tolist() == [2, 2, 0, 0, 0]
