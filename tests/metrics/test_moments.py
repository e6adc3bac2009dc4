"""Moments gathered in pieces equal numpy's of the whole, also across processes."""

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from helpers.group import member

from vamf.metrics.moments import FeatureMoments
from vamf.metrics.statistics import FeatureStatistics
from vamf.rng import generator

DIM = 6
# Far from the origin, where a float32 sum of squares would lose the variance.
FEATURES = 100 + torch.randn(501, DIM, generator=generator("features"))


def assert_matches_numpy(statistics, features):
    exact = features.double().numpy()
    assert statistics.count == len(exact)
    assert statistics.mean.dtype == statistics.covariance.dtype == torch.float64
    np.testing.assert_allclose(statistics.mean, exact.mean(0), rtol=1e-13)
    # Cancellation of 1e4 against 1 leaves twelve of float64's sixteen digits.
    np.testing.assert_allclose(statistics.covariance, np.cov(exact, rowvar=False), atol=1e-10)


@pytest.mark.parametrize("sizes", [[501], [1, 500], [250, 0, 251], [100] * 5 + [1]])
def test_any_batches_equal_one_shot(sizes):
    moments = FeatureMoments(DIM)
    for part in FEATURES.split(sizes):
        moments.update(part)
    assert_matches_numpy(moments.statistics(), FEATURES)


def test_any_merge_equals_one_shot():
    parts = [FeatureMoments(DIM).update(part) for part in FEATURES.split([7, 0, 300, 194])]
    total = FeatureMoments(DIM)
    for k in (2, 0, 3, 1):
        assert total.merge(parts[k]) is total
    assert_matches_numpy(total.statistics(), FEATURES)


def test_two_samples_have_a_covariance():
    """Half of the squared difference, and its mixed products."""
    pair = torch.tensor([[1.0, 5.0], [3.0, 2.0]])
    found = FeatureMoments(2).update(pair).statistics()
    assert found.count == 2 and found.mean.tolist() == [2.0, 3.5]
    assert found.covariance.tolist() == [[2.0, -3.0], [-3.0, 4.5]]


def gather(rank, folder):
    """One of two workers with unequal shares, the second in two batches."""
    share = [FEATURES[:100]] if rank == 0 else [FEATURES[100:400], FEATURES[400:]]
    with member(rank, folder):
        moments = FeatureMoments(DIM)
        for part in share:
            moments.update(part)
        moments.all_reduce().statistics().save(folder / f"{rank}.npz")


def test_two_ranks_equal_one(tmp_path):
    mp.spawn(gather, (tmp_path,), nprocs=2)
    first, second = (FeatureStatistics.load(tmp_path / f"{rank}.npz") for rank in (0, 1))
    assert_matches_numpy(first, FEATURES)
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.covariance, second.covariance)


def test_files_round_trip_and_replace_atomically(tmp_path):
    path = tmp_path / "reference.npz"
    path.write_bytes(b"old")
    statistics = FeatureMoments(DIM).update(FEATURES).statistics()
    statistics.save(path)
    loaded = FeatureStatistics.load(path)
    assert loaded.count == 501
    assert torch.equal(loaded.mean, statistics.mean)
    assert torch.equal(loaded.covariance, statistics.covariance)
    assert list(tmp_path.iterdir()) == [path]


def test_incomplete_and_pickled_files_are_refused(tmp_path):
    path = tmp_path / "reference.npz"
    np.savez(path, mu=np.zeros(2))
    with pytest.raises(ValueError, match="must hold mu and sigma, or ref_mu and ref_sigma; got mu"):
        FeatureStatistics.load(path)
    np.savez(path, mu=np.array([object()]), sigma=np.eye(1), n=2)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        FeatureStatistics.load(path)


def test_too_few_and_wrong_features_are_refused():
    with pytest.raises(ValueError, match="count must be at least 2; got 1"):
        FeatureMoments(DIM).update(FEATURES[:1]).statistics()
    with pytest.raises(ValueError, match=r"features must be \(n, 6\); got \(501, 5\)"):
        FeatureMoments(DIM).update(FEATURES[:, 1:])
    with pytest.raises(ValueError, match="features must be finite"):
        FeatureMoments(DIM).update(FEATURES * torch.nan).statistics()
    with pytest.raises(ValueError, match="dim must be 6; got 5"):
        FeatureMoments(DIM).merge(FeatureMoments(5))
