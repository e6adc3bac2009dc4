"""Distributions of (r, t): order, range, laws and the exact share of r = t."""

import math

import pytest
import torch
from scipy import stats

from vamf.flow.times import (
    ClippedLogitNormalTimes,
    LogitNormalTimes,
    UniformTimes,
    count_equal,
    draw_times,
)
from vamf.rng import generator

N = 20_000

TIMES = {
    "uniform": UniformTimes(),
    "uniform, gap": UniformTimes(max_gap=0.3),
    "uniform, margin": UniformTimes(margin=0.1),
    "logit-normal": LogitNormalTimes(),
    "logit-normal, wide": LogitNormalTimes(mean=1.0, std=3.0),
}


def single_cdf(times):
    """The law of one of the two independent times before they are sorted."""
    if isinstance(times, UniformTimes):
        return stats.uniform(times.margin, 1 - 2 * times.margin).cdf
    return lambda s: stats.norm.cdf((stats.logistic.ppf(s) - times.mean) / times.std)


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
def test_times_are_ordered_and_in_range(times):
    r, t = times(N, generator("times"))
    margin = getattr(times, "margin", 0.0)
    assert r.shape == t.shape == (N,) and r.dtype == t.dtype == torch.float32
    assert (r <= t).all()
    slack = 1e-7  # float32 rounding of 1 - margin
    assert r.min() >= margin - slack and t.max() <= 1 - margin + slack


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
def test_later_time_is_the_larger_of_two(times):
    """P(max <= s) = F(s)^2. At a fixed seed; a right law falls below 1e-3 once in 1000 seeds."""
    t = times(N, generator("law"))[1].numpy()
    cdf = single_cdf(times)
    assert stats.kstest(t, lambda s: cdf(s) ** 2).pvalue > 1e-3
    assert stats.kstest(t, cdf).pvalue < 1e-10  # it has power: one time alone differs


@pytest.mark.parametrize("name", ["uniform", "logit-normal"])
def test_earlier_time_is_the_smaller_of_two(name):
    times = TIMES[name]
    r = times(N, generator("law"))[0].numpy()
    cdf = single_cdf(times)
    assert stats.kstest(r, lambda s: 1 - (1 - cdf(s)) ** 2).pvalue > 1e-3


def test_max_gap_moves_r_only():
    free, cut = UniformTimes(), UniformTimes(max_gap=0.3)
    (r, t), (r_cut, t_cut) = free(N, generator("gap")), cut(N, generator("gap"))
    assert torch.equal(t, t_cut)
    wide = t - r > 0.3
    assert torch.equal(r_cut[~wide], r[~wide])
    assert wide.any() and (t - r_cut - 0.3)[wide].abs().max() < 1e-6  # float32 rounding
    # P(gap >= .3) = (1 - .3)^2 of two uniform times (the margin of 1e-4 changes it by 1e-4).
    expected, spread = 0.49, math.sqrt(0.49 * 0.51 / N)
    assert abs(wide.double().mean() - expected) < 5 * spread + 1e-4


def test_clipped_times_have_laws_of_their_own_and_r_is_the_smaller():
    """P(r > s) = P(R > s) P(t > s) of independent R and t; r is t where R lies above it."""
    times = ClippedLogitNormalTimes(t_mean=0.3, t_std=0.8, r_mean=-0.7, r_std=1.7)
    r, t = (part.double().numpy() for part in times(N, generator("clipped")))
    laws = [stats.norm(0.3, 0.8), stats.norm(-0.7, 1.7)]
    assert stats.kstest(stats.logistic.ppf(t), laws[0].cdf).pvalue > 1e-3
    smaller = stats.kstest(stats.logistic.ppf(r), lambda s: 1 - laws[0].sf(s) * laws[1].sf(s))
    assert smaller.pvalue > 1e-3 and (r <= t).all()
    # P(R >= t) of two normal variables, within 5 standard errors.
    share = stats.norm.cdf((-0.7 - 0.3) / math.hypot(0.8, 1.7))
    assert abs((r == t).mean() - share) < 5 * math.sqrt(share * (1 - share) / N)


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
def test_times_are_a_function_of_the_generator(times):
    first, second = times(8, generator("same")), times(8, generator("same"))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[1], times(8, generator("other"))[1])


@pytest.mark.parametrize("n_equal", [0, 3, 10])
def test_first_pairs_are_equal_and_keep_the_law_of_t(n_equal):
    times = UniformTimes()
    r, t = draw_times(times, 10, n_equal, generator("draw"))
    free_r, free_t = times(10, generator("draw"))
    assert torch.equal(t, free_t) and torch.equal(r[:n_equal], t[:n_equal])
    assert torch.equal(r[n_equal:], free_r[n_equal:])
    assert (r[n_equal:] < t[n_equal:]).all()


@pytest.mark.parametrize(("prob", "n"), [(0.25, 10), (0.75, 7), (0.1, 1), (1 / 3, 4), (0.999, 3)])
def test_share_of_equal_times_is_exact_in_the_mean(prob, n):
    """The count is floor(p n) plus a Bernoulli of the rest: its mean over m draws has that error.

    5 standard errors sqrt(f (1 - f) / m), f the fractional part, at one fixed seed.
    """
    m, exact = 4000, prob * n
    g = generator("count", n)
    counts = torch.tensor([count_equal(prob, n, g) for _ in range(m)], dtype=torch.float64)
    fraction = exact - math.floor(exact)
    assert set(counts.tolist()) <= {math.floor(exact), math.ceil(exact)}
    assert abs(counts.mean() - exact) < 5 * math.sqrt(fraction * (1 - fraction) / m)


@pytest.mark.parametrize(("prob", "n", "count"), [(0.0, 9, 0), (1.0, 9, 9), (0.5, 8, 4)])
def test_whole_shares_are_not_random(prob, n, count):
    g = generator("whole")
    before = g.get_state()
    assert count_equal(prob, n, g) == count
    assert torch.equal(before, g.get_state())


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        *(
            (k, {"prob_equal": p}, "prob_equal")
            for k in (UniformTimes, LogitNormalTimes, ClippedLogitNormalTimes)
            for p in (-0.1, 1.1, math.nan)
        ),
        *((UniformTimes, {"max_gap": gap}, "max_gap") for gap in (0.0, -1.0, 1.1, math.nan)),
        *((UniformTimes, {"margin": m}, "margin") for m in (-0.1, 0.5, math.nan)),
        *((LogitNormalTimes, {"std": s}, "std") for s in (0.0, -1.0, math.nan)),
        *((ClippedLogitNormalTimes, {"t_std": s}, "t_std") for s in (0.0, -1.0, math.nan)),
        *((ClippedLogitNormalTimes, {"r_std": s}, "r_std") for s in (0.0, -1.0, math.nan)),
    ],
)
def test_bad_settings_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


@pytest.mark.parametrize(
    "times",
    [
        UniformTimes(prob_equal=0.0, max_gap=1.0, margin=0.0),
        UniformTimes(prob_equal=1.0, max_gap=0.01, margin=0.49),
        LogitNormalTimes(prob_equal=1.0, std=0.01),
        ClippedLogitNormalTimes(prob_equal=0.0, t_std=0.01, r_std=0.5),
        ClippedLogitNormalTimes(prob_equal=1.0, t_std=0.5, r_std=0.01),
    ],
)
def test_limits_themselves_are_allowed(times):
    r, t = times(100, generator("limits"))
    assert (r >= 0).all() and (r <= t).all() and (t <= 1).all()
