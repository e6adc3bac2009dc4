"""Files of statistics: those of peers are read, and those of another protocol are not."""

import numpy as np
import pytest
import torch

from vamf.metrics.statistics import FeatureStatistics

MEAN, COVARIANCE = np.array([1.0, -2.0]), np.array([[2.0, 0.5], [0.5, 1.0]])


def written(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    "arrays",
    [
        {"mu": MEAN, "sigma": COVARIANCE},  # pytorch-fid
        {"mu": MEAN, "sigma": COVARIANCE, "mu_s": MEAN[:1], "sigma_s": COVARIANCE[:1, :1]},  # ADM
        {"mu": MEAN.astype(np.float32), "sigma": COVARIANCE, "arr_0": np.zeros((1, 2, 2, 3))},
        {"ref_mu": MEAN, "ref_sigma": COVARIANCE},
    ],
    ids=["pytorch-fid", "adm", "adm with images", "jax"],
)
def test_published_formats_are_read(tmp_path, arrays):
    found = FeatureStatistics.load(written(tmp_path / "a.npz", **arrays), {"extractor": "any"})
    assert torch.equal(found.mean, torch.from_numpy(MEAN))
    assert torch.equal(found.covariance, torch.from_numpy(COVARIANCE))
    assert found.count is None and found.mean.dtype == torch.float64


def test_what_is_written_is_what_pytorch_fid_reads(tmp_path):
    path = tmp_path / "a.npz"
    mean, covariance = torch.from_numpy(MEAN), torch.from_numpy(COVARIANCE)
    FeatureStatistics(mean=mean, covariance=covariance, count=7).save(path, {"extractor": "e"})
    with np.load(path) as stored:
        assert (stored["mu"] == MEAN).all() and (stored["sigma"] == COVARIANCE).all()
    assert FeatureStatistics.load(path, {"extractor": "e"}).count == 7


def test_another_protocol_is_refused_naming_both(tmp_path):
    path = tmp_path / "a.npz"
    mean, covariance = torch.from_numpy(MEAN), torch.from_numpy(COVARIANCE)
    made_by = {"extractor": "e", "resolution": "3x32x32"}
    FeatureStatistics(mean=mean, covariance=covariance, count=None).save(path, made_by)
    line = "another protocol: resolution 3x32x32 there, 3x64x64 here"
    with pytest.raises(ValueError, match=line):
        FeatureStatistics.load(path, {"extractor": "e", "resolution": "3x64x64"})


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"mu": MEAN}, "must hold mu and sigma, or ref_mu and ref_sigma; got mu"),
        ({"mu": MEAN, "sigma": np.eye(3)}, r"got \(2,\) and \(3, 3\)"),
    ],
)
def test_incomplete_files_are_refused(tmp_path, arrays, line):
    with pytest.raises(ValueError, match=line):
        FeatureStatistics.load(written(tmp_path / "a.npz", **arrays))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"no archive at all"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz"):
        FeatureStatistics.load(path)
    with pytest.raises(ValueError, match="is no file of statistics"):
        FeatureStatistics.load(tmp_path / "absent.npz")
