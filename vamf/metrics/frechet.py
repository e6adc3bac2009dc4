"""The Fréchet distance of two Gaussians fitted to features, and its sampling error."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vamf.metrics.moments import FeatureMoments
from vamf.metrics.statistics import FeatureStatistics


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|m_a - m_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)), Dowson and Landau (1982); not its root.

    With S = L L^T the last trace is the nuclear norm of L_a^T L_b. This avoids the root of a
    non-symmetric product, so singular covariances (fewer samples than features) lose no digits. Not
    negative. Biased upwards by about c / count, so compare only distances of equal counts.
    Computed on a's device, in float64. Raises ValueError for statistics of other widths, and for
    those that are not finite, or so large that the distance is not.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"statistics must have equally many features; got {len(a.mean)} and {len(b.mean)}"
        )
    _require_finite(a, b)
    return _distance(a, b, _exact(_root(a), _root(b)))


class Frechet(NamedTuple):
    """A distance of n samples, its sampling error, and an estimate of its limit for large n."""

    value: float
    """Biased upwards by about c / n."""
    error: float
    """Standard error of either value."""
    unbiased: float
    """Without the bias of the generated samples, but with the reference's. May be negative."""


def frechet_with_error(blocks: Sequence[FeatureMoments], reference: FeatureStatistics) -> Frechet:
    """The distance of all blocks merged, its sampling error, and the value without its c / n bias.

    Blocks are groups of independent generated samples whose sizes differ by at most 1. The error is
    the delete-one-block jackknife's, sqrt((K - 1) / K sum_k (FD_k - mean)^2) with FD_k the distance
    without block k (Efron and Stein, 1981): how much the value varies between sets of as many
    samples of the same model with the same reference. It does not include the bias, the sampling of
    the reference, or the variation between training seeds. Its own relative error is about
    1 / sqrt(2 (K - 1)): use ten blocks or more. Where the value is hardly larger than its bias, the
    error is too large by about a third.

    The unbiased value is the jackknife's, K FD - (K - 1) mean (Quenouille, 1956): terms of order
    1 / n cancel, as in FID-infinity (arXiv 1911.07023), but without that estimate's regression over
    subsets, which doubles the noise. With as many samples as features, nine tenths of the bias are
    removed; with thirty times as many, all but a twentieth (64 heavy-tailed features).

    Raises ValueError for fewer than two blocks, unequal blocks, too few samples, and for features
    or a reference that are not finite.
    """
    sizes = sorted({block.count for block in blocks})
    if len(blocks) < 2:
        raise ValueError(f"blocks must be at least 2; got {len(blocks)}")
    if sizes[-1] - sizes[0] > 1:
        raise ValueError(f"blocks must be of equal size; got sizes {sizes}")
    _require_finite(reference)
    whole, root, k = _merged(blocks).statistics(), _root(reference), len(blocks)

    def quick(a: FeatureStatistics) -> float:
        return _distance(a, reference, _quick(a, root))

    parts = [_merged([*blocks[:i], *blocks[i + 1 :]]).statistics() for i in range(k)]
    without = torch.tensor([quick(part) for part in parts], dtype=torch.float64)
    value = _distance(whole, reference, _exact(_root(whole), root))
    error = (without.var(correction=0) * (k - 1)).sqrt()
    return Frechet(value, float(error), value + (k - 1) * (quick(whole) - float(without.mean())))


def _merged(blocks: Sequence[FeatureMoments]) -> FeatureMoments:
    total = FeatureMoments(blocks[0].dim, blocks[0].sum.device)
    for block in blocks:
        total.merge(block)
    return total


def _require_finite(*statistics: FeatureStatistics) -> None:
    for each in statistics:
        if not (each.mean.isfinite().all() and each.covariance.isfinite().all()):
            raise ValueError("statistics must be finite; got a mean or a covariance that is not")


def _root(statistics: FeatureStatistics) -> Float[Tensor, "features features"]:
    """L with L L^T = covariance; negative eigenvalues from rounding are set to zero."""
    values, vectors = torch.linalg.eigh(statistics.covariance)
    return vectors * values.clamp(min=0).sqrt()


def _exact(root_a: Tensor, root_b: Tensor) -> Tensor:
    """Tr (S_a S_b)^(1/2), accurate even for singular covariances."""
    return torch.linalg.svdvals(root_a.T @ root_b.to(root_a.device)).sum()


def _quick(a: FeatureStatistics, root_b: Tensor) -> Tensor:
    """The same without a root of S_a or singular values, in a third of the time.

    For singular covariances half of the digits are lost; the rest suffices for differences.
    """
    root_b = root_b.to(a.covariance.device)
    return torch.linalg.eigvalsh(root_b.T @ a.covariance @ root_b).clamp(min=0).sqrt().sum()


def _distance(a: FeatureStatistics, b: FeatureStatistics, overlap: Tensor) -> float:
    shift = (a.mean - b.mean.to(a.mean.device)).square().sum()
    traces = a.covariance.trace() + b.covariance.trace().to(a.mean.device)
    value = float(shift + traces - 2 * overlap)
    if not math.isfinite(value):  # which max would hide: max(0, nan) is 0
        raise ValueError(f"a distance must be finite; got {value}: the features are too large")
    return max(0.0, value)
