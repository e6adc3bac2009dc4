"""Files of statistics: those of peers are read, and those of another protocol are not."""

import pickle
import random

import numpy as np
import pytest
import torch

from vamf.metrics.statistics import FeatureStatistics, maker

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
        ({"pool_3": np.zeros((3, 2))}, "got pool_3: pool_3 holds the features themselves"),
        ({"arr_0": np.zeros((3, 2))}, "got arr_0: arr_0 holds images"),
        ({"m": MEAN, "s": COVARIANCE}, "got m, s: statistics by other names"),
        ({"mean": MEAN, "cov": COVARIANCE}, "got cov, mean: statistics by other names"),
        ({}, "got nothing"),
    ],
)
def test_incomplete_files_are_refused(tmp_path, arrays, line):
    with pytest.raises(ValueError, match=line):
        FeatureStatistics.load(written(tmp_path / "a.npz", **arrays))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04 broken", "it seems to be damaged: File is not a zip file"),
        (b"no archive at all", "it is no zip file"),
        (b"\n<!DOCTYPE html><html>404", "it seems to be an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        (b"\x93NUMPY\x01\x00", "it is a single array"),
        (pickle.dumps({"mu": [1.0]}), "it seems to be a pickle"),
        (None, "No such file"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, line):
    path = tmp_path / "a.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        FeatureStatistics.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is no file of statistics") and line in message
    assert "\n" not in message


NAN, LONG = float("nan"), np.longdouble


def wrong(array, place, value):
    found = array.copy()
    found[place] = value
    return found


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"mu": wrong(MEAN, 1, NAN)}, "mu and sigma must be finite; got 1 values that are not"),
        ({"sigma": wrong(COVARIANCE, (0, 1), NAN)}, "must be finite; got 1 values"),
        ({"sigma": COVARIANCE * np.inf}, "must be finite; got 4 values"),
        ({"mu": MEAN.astype(LONG) * LONG("1e4000")}, "must be finite; got 2 values"),
        ({"sigma": wrong(COVARIANCE, (0, 1), 0.4)}, "symmetric covariance; got entries 0.1 apart"),
        ({"sigma": wrong(COVARIANCE, (0, 0), -2.0)}, "no negative variance; got -2"),
        ({"sigma": np.array([[1.0, 2], [2, 1]])}, "without negative eigenvalues; got -1"),
        ({"sigma": np.array([[0.0, 2], [2, 0]])}, "without negative eigenvalues; got -2"),
        ({"mu": np.array(["a", "b"])}, "real numbers as mu; got <U1"),
        ({"mu": MEAN * 1j}, "real numbers as mu; got complex128"),
        ({"mu": MEAN[:0], "sigma": COVARIANCE[:0, :0]}, r"got \(0,\) and \(0, 0\)"),
        ({"n": np.array([7])}, r"n, a whole number of at least 2; got int64 of shape \(1,\)"),
        ({"n": np.array("7")}, "n, a whole number of at least 2; got <U1 of shape"),
        *(({"n": n}, f"n, a whole number of at least 2; got {n}") for n in (NAN, -5.0, 1.0, 2.5)),
        ({"protocol": np.array("{")}, "its protocol as JSON, names and texts; got {"),
        ({"protocol": np.array('{"extractor": 3}')}, "its protocol as JSON"),
        ({"protocol": MEAN}, "its protocol as JSON"),
    ],
)
def test_what_is_no_gaussian_is_refused_in_one_line(tmp_path, arrays, line):
    path = written(tmp_path / "a.npz", **{"mu": MEAN, "sigma": COVARIANCE, "n": 7} | arrays)
    with pytest.raises(ValueError, match=line) as caught:
        FeatureStatistics.load(path, {"extractor": "e"})
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [np.float16, ">f8", LONG, np.int64])
def test_any_real_numbers_are_read(tmp_path, kind):
    mean, covariance = np.array([1, -2]).astype(kind), np.array([[2, 1], [1, 3]]).astype(kind)
    found = FeatureStatistics.load(written(tmp_path / "a.npz", mu=mean, sigma=covariance, n=9.0))
    assert found.mean.tolist() == [1, -2] and found.covariance.tolist() == [[2, 1], [1, 3]]
    assert found.count == 9


def test_rounding_is_no_fault(tmp_path):
    """Of fewer samples than features, in float32 and rounded apart: singular, hardly symmetric."""
    features = np.random.default_rng(0).normal(size=(20, 64))
    exact = np.cov(features, rowvar=False)
    rounded = (exact.astype(np.float32) * (1 + 1e-6 * np.tri(64))).astype(np.float32)
    assert np.linalg.eigvalsh(rounded)[0] < 0 and (rounded != rounded.T).any()
    path = written(tmp_path / "a.npz", mu=features.mean(0), sigma=rounded)
    found = FeatureStatistics.load(path).covariance
    assert torch.equal(found, found.T) and np.allclose(found.numpy(), exact, atol=1e-5)
    zero = written(tmp_path / "b.npz", mu=MEAN, sigma=0 * COVARIANCE)
    assert not FeatureStatistics.load(zero).covariance.any()


@pytest.mark.parametrize("size", [1.0, 1e6])
@pytest.mark.parametrize(
    "fault",
    [
        [[1, 0, 0], [0, -1e-4, 0], [0, 0, 0.5]],  # a negative variance
        [[1, 1e-4, 0], [0, 1, 0], [0, 0, 0.5]],  # not symmetric
        # Eigenvalues a + b and a - b of [[a, b], [b, a]].
        [[0.5, 0.5 + 1e-4, 0], [0.5 + 1e-4, 0.5, 0], [0, 0, 1]],
    ],
    ids=["variance", "symmetry", "eigenvalue"],
)
def test_faults_of_a_ten_thousandth_of_the_largest_variance_are_rounding(tmp_path, fault, size):
    """A tenth less is accepted, and a tenth more is not."""
    fault = np.array(fault)
    whole = np.round(fault, 3)
    for share in (0.9, 1.1):
        sigma = size * (whole + share * (fault - whole))
        path = written(tmp_path / "a.npz", mu=np.zeros(3), sigma=sigma)
        if share < 1:
            assert FeatureStatistics.load(path).covariance.shape == (3, 3)
        else:
            with pytest.raises(ValueError, match=r"symmetric covariance|negative"):
                FeatureStatistics.load(path)


def damaged(content: bytes, random: random.Random) -> bytes:
    """Cut short, or with some bits of a byte flipped, or a stretch of zeros, at a random place."""
    place, kind = random.randrange(len(content)), random.randrange(4)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + bytes(min(64, len(content) - place)) + content[place + 64 :]
    return (
        content[:place] + bytes([content[place] ^ random.randrange(1, 256)]) + content[place + 1 :]
    )


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file_is_refused_or_makes_no_difference(tmp_path, save):
    path, chance = tmp_path / "a.npz", random.Random(0)
    save(path, mu=MEAN, sigma=COVARIANCE, n=7, protocol=np.array('{"extractor": "e"}'))
    content, refused = path.read_bytes(), 0
    for _ in range(400):
        path.write_bytes(damaged(content, chance))
        try:
            found = FeatureStatistics.load(path, {"extractor": "e"})
        except ValueError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            refused += 1
        else:
            assert found.mean.tolist() == MEAN.tolist() and found.count == 7
            assert found.covariance.tolist() == COVARIANCE.tolist() and maker(path) == "vamf"
    assert 100 < refused < 400  # some bytes, such as dates, say nothing


@pytest.mark.parametrize(
    ("names", "who"),
    [
        ("mu sigma", "unknown"),
        ("mu sigma mu_s sigma_s", "ADM"),
        ("arr_0 mu sigma mu_s sigma_s", "ADM"),
        ("ref_mu ref_sigma", "MeanFlow"),
        ("mu sigma n protocol", "vamf"),
    ],
)
def test_the_names_of_arrays_tell_who_made_a_file(tmp_path, names, who):
    assert maker(written(tmp_path / "a.npz", **dict.fromkeys(names.split(), MEAN))) == who
