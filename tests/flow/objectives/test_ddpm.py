"""The DDPM baseline against closed forms: one data point, and Gaussian data."""

import math

import pytest
import torch
from scipy import stats

from vamf.flow.objectives.ddpm import DDPM
from vamf.flow.objectives.terms import Draws
from vamf.rng import generator
from vamf.typing import expand_like

MEAN, SCALE = 0.3, 0.6
FREE = DDPM(clip=False)


def normal(*shape, key="ddpm"):
    return torch.randn(*shape, generator=generator(key, *shape), dtype=torch.float64)


def optimal(ddpm, mean=MEAN, scale=SCALE):
    """The noise that is expected of z at time t for data N(mean, scale^2), in each dimension."""

    def eps(z, t):
        kept = expand_like(ddpm.kept()[(t * ddpm.levels).round().long() - 1], z)
        return (1 - kept).sqrt() * (z - kept.sqrt() * mean) / (kept * scale**2 + 1 - kept)

    return eps


def draws(x, key="draws"):
    t = torch.rand(len(x), generator=generator(key), dtype=torch.float64)
    return Draws(x, normal(*x.shape, key=key), t, t, len(x))


def test_the_schedule_is_ho_et_als():
    added, kept = FREE.added(), FREE.kept()
    assert len(added) == 1000 and added[0] == 1e-4 and added[-1] == 0.02
    assert (added.diff() - added.diff()[0]).abs().max() < 1e-15
    # "4e-5": of the data's variance hardly anything is left (appendix B: about 1e-5 bits).
    assert kept[-1].item() == pytest.approx(math.exp(sum(map(math.log1p, -added))), rel=1e-12)
    assert kept[-1].item() == pytest.approx(4.04e-5, rel=1e-2)


def test_noise_added_level_by_level_is_noise_added_at_once():
    x, e = normal(5, 2), normal(5, 2, key="other")
    mean, variance = x, torch.zeros(())
    for level, added in enumerate(FREE.added().tolist()):
        mean, variance = math.sqrt(1 - added) * mean, (1 - added) * variance + added
        if level in (0, 1, 17, 999):
            at = torch.full((5,), level)
            torch.testing.assert_close(FREE.noised(x, e, at), mean + variance.sqrt() * e)


def test_uniform_times_are_uniform_levels():
    ddpm = DDPM(levels=10)
    ends = torch.tensor([0.0, 0.09, 0.11, 0.95, 1.0])
    assert ddpm.level(ends).tolist() == [0, 0, 1, 9, 9]
    levels = ddpm.level(torch.rand(5000, generator=generator("levels")))
    assert stats.chisquare(levels.bincount(minlength=10)).pvalue > 1e-4
    assert ddpm.time(torch.tensor([0, 9])).tolist() == pytest.approx([0.1, 1.0])


def test_the_loss_at_the_optimum_is_the_conditional_variance_of_the_noise():
    x = MEAN + SCALE * normal(20_000, 4, key="data")
    d = draws(x)
    terms = FREE(lambda z, r, t: optimal(FREE)(z, t), d)
    kept = FREE.kept()[FREE.level(d.t)]
    expected = kept * SCALE**2 / (kept * SCALE**2 + 1 - kept)
    difference = terms.squared_error / 4 - expected
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(len(x))
    assert terms.loss.item() == pytest.approx((terms.squared_error / 4).mean().item())
    assert (terms.squared_correction == 0).all() and terms.n_equal == len(x)


def test_the_gradient_of_the_loss_vanishes_at_the_optimum():
    d = draws(MEAN + SCALE * normal(20_000, 4, key="data"))
    scale = torch.ones(len(d.x), 1, dtype=torch.float64, requires_grad=True)
    terms = FREE(lambda z, r, t: scale * optimal(FREE)(z, t), d)
    (slopes,) = torch.autograd.grad(terms.loss * len(d.x), scale)
    assert abs(slopes.mean()) < 4 * slopes.std() / math.sqrt(len(slopes))
    wrong = FREE(lambda z, r, t: 1.1 * optimal(FREE)(z, t), d)
    assert wrong.loss > terms.loss


@pytest.mark.parametrize("variance", ["large", "small"])
def test_one_data_point_is_hit_by_ancestral_sampling(variance):
    ddpm = DDPM(levels=50, variance=variance, clip=False)
    e = normal(6, 3)
    g = generator("fresh")
    landed = ddpm.ancestral(
        optimal(ddpm, scale=0.0), e, lambda: torch.randn(e.shape, generator=g).double()
    )
    torch.testing.assert_close(landed, torch.full_like(e, MEAN), rtol=0, atol=1e-12)


def test_ancestral_steps_are_those_of_equation_11():
    """The mean (z - added / sqrt(1 - kept) eps) / sqrt(1 - added), and the large variance."""
    ddpm, e = DDPM(levels=20, clip=False), normal(6, 3)
    eps = optimal(ddpm)
    noise = [normal(6, 3, key=k) for k in range(19)]
    landed = ddpm.ancestral(eps, e, iter(noise).__next__)
    z, left = e, iter(noise)
    for k in range(19, -1, -1):
        added, kept = ddpm.added()[k], ddpm.kept()[k]
        t = torch.full((6,), (k + 1) / 20, dtype=torch.float64)
        z = (z - added / (1 - kept).sqrt() * eps(z, t)) / (1 - added).sqrt()
        z = z + added.sqrt() * next(left) if k else z
    torch.testing.assert_close(landed, z, rtol=1e-11, atol=1e-11)


def test_the_large_variance_keeps_standard_normal_data():
    """Their noise's mean is sqrt(1 - kept) z: a step is sqrt(1 - added) z + sqrt(added) n."""
    eps, e = optimal(FREE, mean=0.0, scale=1.0), normal(4, 2)
    n_constant = FREE.ancestral(eps, e, lambda: torch.zeros_like(e))
    torch.testing.assert_close(n_constant, FREE.kept()[-1].sqrt() * e, rtol=1e-9, atol=0)


def test_the_small_variance_is_smaller_and_both_are_unbiased():
    e, moments = normal(20_000, 1), {}
    for variance in ("large", "small"):
        ddpm, g = DDPM(levels=200, last=0.1, variance=variance, clip=False), generator(variance)
        x = ddpm.ancestral(
            optimal(ddpm), e, lambda g=g: torch.randn(e.shape, generator=g, dtype=e.dtype)
        )
        moments[variance] = x.mean().item(), x.std().item()
    for mean, deviation in moments.values():
        assert mean == pytest.approx(MEAN, abs=4 * SCALE / math.sqrt(20_000))
        assert deviation == pytest.approx(SCALE, rel=0.05)  # 200 levels
    assert moments["small"][1] < moments["large"][1]


def test_ddim_follows_the_flow_of_a_gaussian_to_first_order():
    """The flow keeps (z - sqrt(kept) mean) / deviation of z."""
    e, kept = normal(6, 2), FREE.kept()[-1]
    start = (e - kept.sqrt() * MEAN) / (kept * SCALE**2 + 1 - kept).sqrt()
    exact = MEAN + SCALE * start
    errors = [(FREE.ddim(optimal(FREE), e, n) - exact).abs().max() for n in (50, 100, 200)]
    assert errors[0] < 0.05
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_ddim_hits_one_data_point_from_the_highest_level(steps):
    ddpm, seen = DDPM(levels=50, clip=False), []
    exact = optimal(ddpm, scale=0.0)

    def eps(z, t):
        seen.append(round(t[0].item() * 50))
        return exact(z, t)

    e = normal(6, 3)
    torch.testing.assert_close(ddpm.ddim(eps, e, steps), torch.full_like(e, MEAN))
    assert len(seen) == steps and seen[0] == 50 and seen == sorted(set(seen), reverse=True)


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_ddim_without_noise_only_scales(steps):
    """Equation 12 with eps = 0: the levels' scales cancel, down to the data, whose scale is 1."""
    ddpm, e = DDPM(levels=10, clip=False), normal(5, 2)
    found = ddpm.ddim(lambda z, t: torch.zeros_like(z), e, steps)
    torch.testing.assert_close(found, e / ddpm.kept()[-1] ** 0.5, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sampling_gives_the_network_times_of_the_samples_type(dtype):
    """From t = 1 down, (k + 1) / levels at each level k."""
    seen = []

    def eps(z, t):
        seen.append(t)
        return z / 2

    e = normal(2, 3).to(dtype)
    for sampled in (
        DDPM(levels=4).ddim(eps, e, 4),
        DDPM(levels=4).ancestral(eps, e, lambda: torch.zeros_like(e)),
    ):
        assert sampled.dtype == dtype and sampled.isfinite().all()
    assert {t.dtype for t in seen} == {dtype}
    assert [t.tolist() for t in seen] == 2 * [[k / 4] * 2 for k in (4, 3, 2, 1)]


def test_predicted_data_are_clipped():
    ddpm, e = DDPM(levels=20), normal(6, 3)
    for x in (
        ddpm.ddim(optimal(ddpm, mean=3.0, scale=0.0), e, 20),
        ddpm.ancestral(optimal(ddpm, mean=3.0, scale=0.0), e, lambda: torch.zeros_like(e)),
    ):
        torch.testing.assert_close(x, torch.ones_like(x))


@pytest.mark.parametrize("steps", [0, 1001])
def test_too_few_or_too_many_steps_are_refused(steps):
    with pytest.raises(ValueError, match=f"1 to 1000 steps; got {steps}"):
        FREE.ddim(optimal(FREE), normal(2, 1), steps)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"levels": 1}, "at least 2 levels; got 1"),
        ({"first": 0.0}, "0 < first <= last < 1; got 0.0, 0.02"),
        ({"last": 1.0}, "got 0.0001, 1.0"),
        ({"first": 0.03}, "got 0.03, 0.02"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        DDPM(**settings)


def test_two_levels_are_enough():
    assert DDPM(levels=2).kept().tolist() == pytest.approx([0.9999, 0.9999 * 0.98])


@pytest.mark.parametrize(("first", "last"), [(1e-6, 0.02), (0.02, 0.02), (0.5, 0.99)])
def test_limits_themselves_are_allowed(first, last):
    kept = DDPM(levels=4, first=first, last=last).kept()
    steps = [1 - first - k * (last - first) / 3 for k in range(4)]
    assert kept.tolist() == pytest.approx([math.prod(steps[: k + 1]) for k in range(4)])


def test_one_sample_alone_has_the_loss_that_it_has_in_a_batch():
    x, e = normal(4, 3), normal(4, 3, key="noise")
    d = Draws(x, e, torch.zeros(4), torch.linspace(0.1, 0.9, 4), 0)

    def u(z, r, t):
        return torch.sin(z) * t[:, None]

    whole = DDPM()(u, d)
    alone = [DDPM()(u, one) for one in d.parts(1)]
    torch.testing.assert_close(whole.loss, torch.stack([one.loss for one in alone]).mean())
    errors = torch.cat([one.squared_error for one in alone])
    torch.testing.assert_close(whole.squared_error, errors)


def test_what_is_watched_of_a_loss_has_no_graph():
    x, e = normal(4, 3), normal(4, 3, key="noise")
    d = Draws(x, e, torch.zeros(4), torch.full((4,), 0.5), 0)
    weight = torch.ones((), requires_grad=True)
    terms = DDPM()(lambda z, r, t: weight * z, d)
    assert terms.loss.requires_grad
    assert not (terms.squared_error.requires_grad or terms.squared_correction.requires_grad)
