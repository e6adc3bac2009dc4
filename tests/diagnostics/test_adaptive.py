"""The closed loop: beta*(t) from smoothed landscapes, within bounds."""

import pytest
import torch

from vamf.diagnostics.adaptive import AdaptiveBeta, AdaptiveBetaState, box_minimum
from vamf.diagnostics.landscape import Landscape, ProbeMoments
from vamf.rng import generator

CPU = torch.device("cpu")


def random_tables(pairs, bins, key):
    tables, g = ProbeMoments.zeros(pairs, bins, CPU), generator("adaptive", key)
    for k in range(pairs):
        a = torch.randn(3 * bins, 20, generator=g, dtype=torch.float64)
        b = torch.randn(3 * bins, 20, generator=g, dtype=torch.float64)
        half = (a - b) / 2**0.5
        tables.covariance[k], tables.crossed[k] = half @ half.T, (a @ b.T + b @ a.T) / 2
        tables.count[k] = 1 / bins
    return tables


def test_one_bin_is_the_landscapes_own_minimiser():
    tables = random_tables(50, 1, "one")
    rule = AdaptiveBeta(bins=1)
    state = AdaptiveBetaState.new(rule, CPU).updated(rule, tables)
    star = Landscape(tables, (0.0, 1.0), 8, False).minimiser("gradient/mse").value
    assert float(state.betas[0]) == pytest.approx(star, abs=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_the_box_minimum_is_where_the_gradient_points_outwards(scale):
    g = generator("box")
    for _ in range(20):
        root = torch.randn(5, 9, generator=g, dtype=torch.float64)
        q = scale * root @ root.T
        c = scale * 4 * torch.randn(5, generator=g, dtype=torch.float64)
        x = box_minimum(q, c, torch.full((5,), 0.5, dtype=torch.float64), 0.1, 0.9)
        slope = (q @ x + c) / scale
        assert (
            (slope.abs() < 1e-9) | ((x == 0.1) & (slope > 0)) | ((x == 0.9) & (slope < 0))
        ).all()


def test_estimates_are_averaged_without_bias_to_the_start():
    rule, parts = AdaptiveBeta(bins=2, smoothing=0.7), [random_tables(4, 2, k) for k in range(3)]
    state = AdaptiveBetaState.new(rule, CPU)
    for tables in parts:
        state = state.updated(rule, tables)
    weights = torch.tensor([0.7**2, 0.7, 1.0], dtype=torch.float64)
    linear = torch.stack([p.covariance.mean(0)[:2, 2:4].sum(0) for p in parts])
    torch.testing.assert_close(state.linear, weights @ linear / weights.sum())
    means = [(p.covariance.mean(0), p.crossed.mean(0)) for p in parts]
    quadratic = torch.stack([c[2:4, 2:4] + b[4:, 4:] for c, b in means])
    expected = torch.einsum("k,kij->ij", weights, quadratic) / weights.sum()
    torch.testing.assert_close(state.quadratic, expected)
    assert int(state.estimates) == 3


def test_a_bin_without_samples_stays_where_it_was():
    tables = random_tables(4, 2, "empty")
    for table in (tables.covariance, tables.crossed):
        for row in (1, 3, 5):  # the second bin's
            table[:, row], table[:, :, row] = 0, 0
    rule = AdaptiveBeta(bins=2, start=0.3)
    assert float(AdaptiveBetaState.new(rule, CPU).updated(rule, tables).betas[1]) == pytest.approx(
        0.3
    )


def test_each_time_takes_its_bins_beta():
    state = AdaptiveBetaState.new(AdaptiveBeta(bins=4), CPU)._replace(
        betas=torch.tensor([0.1, 0.2, 0.3, 0.4])
    )
    t = torch.tensor([0.0, 0.24, 0.25, 0.6, 0.99, 1.0])
    torch.testing.assert_close(state.at(t), torch.tensor([0.1, 0.1, 0.2, 0.3, 0.4, 0.4]))


def test_estimates_come_at_their_steps():
    rule = AdaptiveBeta(begin=10, every=5)
    assert [step for step in range(25) if rule.due(step)] == [10, 15, 20]


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_limits_themselves_are_allowed(at):
    """Bounds without room between them hold beta where it began; from the first step on."""
    rule = AdaptiveBeta(start=at, low=at, high=at, begin=0, every=1, pairs=2, bins=1, smoothing=0.0)
    state = AdaptiveBetaState.new(rule, CPU).updated(rule, random_tables(2, 1, "limits"))
    assert state.betas.tolist() == [at] and rule.due(0) and rule.due(1)
    assert rule.varies_over_training and rule.probe.weighted and rule.probe.pairs == 2


def test_without_smoothing_the_last_estimate_is_all():
    rule = AdaptiveBeta(bins=2, smoothing=0.0)
    first, last = random_tables(4, 2, "first"), random_tables(4, 2, "last")
    state = AdaptiveBetaState.new(rule, CPU).updated(rule, first).updated(rule, last)
    only = AdaptiveBetaState.new(rule, CPU).updated(rule, last)
    torch.testing.assert_close(state.betas, only.betas)
    assert torch.equal(state.linear, only.linear) and torch.equal(state.quadratic, only.quadratic)


@pytest.mark.parametrize(
    "wrong", [{"smoothing": 1.0}, {"low": 0.5}, {"high": 1.5}, {"begin": -1}, {"pairs": 1}]
)
def test_what_cannot_be_adapted_is_refused(wrong):
    with pytest.raises(ValueError, match=r"must|needs"):
        AdaptiveBeta(**wrong)
