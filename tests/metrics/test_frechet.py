"""The Fréchet distance against closed forms, and its error against repetitions."""

import math

import pytest
import torch

from vamf.metrics.frechet import frechet_distance, frechet_with_error
from vamf.metrics.moments import FeatureMoments
from vamf.metrics.statistics import FeatureStatistics
from vamf.rng import generator

DIM = 20


def gaussian(mean, covariance):
    return FeatureStatistics(mean=mean, covariance=covariance, count=1000)


def wishart(rank, key):
    root = torch.randn(DIM, rank, generator=generator("root", key), dtype=torch.float64)
    return root @ root.T / DIM


@pytest.mark.parametrize("rank", [DIM, DIM // 4, 1])
def test_linear_image_of_a_gaussian(rank):
    """S_b = T S_a T with T symmetric positive: Tr (S_a S_b)^(1/2) = Tr(S_a T), at any rank."""
    s, identity = wishart(rank, rank), torch.eye(DIM, dtype=torch.float64)
    t = identity + 0.3 * wishart(DIM, "T")
    zero = torch.zeros(DIM, dtype=torch.float64)
    expected = float(torch.trace((t - identity) @ s @ (t - identity)))
    found = frechet_distance(gaussian(zero, s), gaussian(zero, t @ s @ t))
    assert found == pytest.approx(expected, rel=1e-10)


def test_commuting_covariances():
    a, b = torch.rand(2, DIM, generator=generator("scales"), dtype=torch.float64)
    zero = torch.zeros(DIM, dtype=torch.float64)
    found = frechet_distance(gaussian(zero, a.diag()), gaussian(zero, b.diag()))
    assert found == pytest.approx(float((a.sqrt() - b.sqrt()).square().sum()), rel=1e-12)


@pytest.mark.parametrize("rank", [DIM, 3])
def test_shift_alone_costs_its_square_and_nothing_costs_nothing(rank):
    s, shift = wishart(rank, "s"), torch.linspace(-1, 2, DIM, dtype=torch.float64)
    a, b = gaussian(0 * shift, s), gaussian(shift, s)
    assert frechet_distance(a, b) == pytest.approx(float(shift.square().sum()), rel=1e-12)
    assert 0 <= frechet_distance(a, a) < 1e-12


def test_symmetry():
    mean = torch.ones(DIM, dtype=torch.float64)
    a, b = gaussian(mean, wishart(DIM, 1)), gaussian(-mean, wishart(4, 2))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_widths_must_agree():
    a = gaussian(torch.zeros(2).double(), torch.eye(2).double())
    b = gaussian(torch.zeros(3).double(), torch.eye(3).double())
    with pytest.raises(ValueError, match="must have equally many features; got 2 and 3"):
        frechet_distance(a, b)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["mean", "covariance"])
def test_what_is_not_finite_is_no_distance(side, value, where):
    """NaN would be the best distance there is: max(0, nan) is 0."""
    broken = {"mean": torch.zeros(4).double(), "covariance": torch.eye(4).double()}
    broken[where] = broken[where].clone()
    broken[where].flatten()[-1] = value
    pair = [REFERENCE, gaussian(**broken)]
    with pytest.raises(ValueError, match="must be finite"):
        frechet_distance(pair[side], pair[1 - side])
    with pytest.raises(ValueError, match="must be finite"):
        frechet_with_error(blocks_of(10, 50, 0.0, 0), pair[1])


def test_one_feature_that_is_not_finite_is_no_distance():
    blocks = blocks_of(10, 50, 0.0, 0)
    blocks[3].update(torch.tensor([[0.0, math.nan, 0.0, 0.0]]))
    with pytest.raises(ValueError, match="features must be finite"):
        frechet_with_error(blocks, REFERENCE)


def test_a_distance_that_overflows_is_refused():
    huge = gaussian(torch.full((4,), 1e200, dtype=torch.float64), torch.eye(4).double())
    with pytest.raises(ValueError, match="a distance must be finite; got inf"):
        frechet_distance(huge, REFERENCE)


def blocks_of(count, size, shift, key):
    normal = shift + torch.randn(count * size, 4, generator=generator("blocks", key))
    return [FeatureMoments(4).update(part) for part in normal.split(size)]


REFERENCE = FeatureStatistics(
    mean=torch.zeros(4).double(), covariance=torch.eye(4).double(), count=10**6
)


# At shift 0 the value is its bias alone and not asymptotically normal: a wider factor.
@pytest.mark.parametrize(("shift", "factor"), [(0.5, 1.2), (0.0, 1.6)])
def test_error_is_the_spread_over_repetitions(shift, factor):
    """The root mean square of 200 errors against the deviation of the 200 values."""
    results = torch.tensor(
        [frechet_with_error(blocks_of(10, 50, shift, k), REFERENCE) for k in range(200)]
    )
    spread, error = results[:, 0].std(), results[:, 1].square().mean().sqrt()
    assert 1 / factor < error / spread < factor


def test_value_is_that_of_the_whole_set():
    blocks = blocks_of(5, 20, 0.1, "whole")
    whole = FeatureMoments(4)
    for block in blocks:
        whole.merge(block)
    value, error, _ = frechet_with_error(blocks, REFERENCE)
    assert value == frechet_distance(whole.statistics(), REFERENCE) and error > 0
    assert blocks[0].count == 20


@pytest.mark.parametrize("size", [50, 2])
def test_error_and_unbiased_value_are_the_jackknifes_own(size):
    """Of exact distances; also where covariances are singular: 18 samples of 20 features."""
    normal = 0.3 + torch.randn(10 * size, DIM, generator=generator("jackknife"))
    blocks = [FeatureMoments(DIM).update(part) for part in normal.split(size)]
    reference = gaussian(torch.zeros(DIM).double(), wishart(DIM, "reference"))

    def distance(chosen):
        whole = FeatureMoments(DIM)
        for block in chosen:
            whole.merge(block)
        return frechet_distance(whole.statistics(), reference)

    without = [distance([*blocks[:i], *blocks[i + 1 :]]) for i in range(10)]
    mean = math.fsum(without) / 10
    error = math.sqrt(0.9 * math.fsum((each - mean) ** 2 for each in without))
    found = frechet_with_error(blocks, reference)
    assert found.value == distance(blocks)
    assert found.error == pytest.approx(error, rel=1e-6)
    assert found.unbiased == pytest.approx(10 * found.value - 9 * mean, rel=1e-6)


def test_bias_falls_as_one_over_count():
    """Same distribution: the distance is dim / count at leading order from the mean alone."""
    means = []
    for size in (100, 400):
        values = [
            frechet_distance(blocks_of(1, size, 0.0, k)[0].statistics(), REFERENCE)
            for k in range(100)
        ]
        means.append(math.fsum(values) / len(values))
    assert 3.2 < means[0] / means[1] < 5


def test_unusable_blocks_are_refused():
    with pytest.raises(ValueError, match="blocks must be at least 2; got 1"):
        frechet_with_error(blocks_of(1, 20, 0.0, 0), REFERENCE)
    unequal = [*blocks_of(1, 20, 0.0, 0), *blocks_of(1, 30, 0.0, 0)]
    with pytest.raises(ValueError, match=r"equal size; got sizes \[20, 30\]"):
        frechet_with_error(unequal, REFERENCE)
