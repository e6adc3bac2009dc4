"""Reference statistics are computed once for the same images, and for no others."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from vamf.data.dataset import ImageSet
from vamf.data.digits import Digits
from vamf.data.torchvision_sets import CIFAR10
from vamf.distributed import Workers
from vamf.metrics import quality, reference
from vamf.metrics.cnn import SHIPPED
from vamf.metrics.distances import FrechetDistance
from vamf.metrics.extractors import INCEPTION_ID, ClassifierExtractor, RandomExtractor
from vamf.metrics.moments import FeatureMoments

TEST = Digits().load("test")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VAMF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reference"


class Counting(ClassifierExtractor):
    """Counts the images that it sees."""

    seen = 0

    def __call__(self, images):
        type(self).seen += len(images)
        return super().__call__(images)


@pytest.fixture
def counting():
    Counting.seen = 0
    return Counting()


def of(images, extractor, **options):
    return reference.of_images(images, extractor, Workers(), split="test", **options)


def same(a, b):
    return torch.equal(a.statistics.mean, b.statistics.mean) and torch.equal(
        a.statistics.covariance, b.statistics.covariance
    )


def test_a_second_look_computes_nothing(counting, folder):
    first = of(TEST, counting)
    assert counting.seen == 450
    assert same(of(TEST, counting), first) and counting.seen == 450
    direct = FeatureMoments(64).update(ClassifierExtractor()(TEST.images)).statistics()
    torch.testing.assert_close(first.statistics.covariance, direct.covariance, rtol=1e-5, atol=0)
    (path,) = folder.glob("*.npz")
    with np.load(path) as stored:
        key = json.loads(str(stored["protocol"]))
    assert key["extractor"] == "digits_cnn64_v1" and key["resolution"] == "1x8x8"
    assert key["weights"] == SHIPPED["digits_cnn64_v1"].sha256
    assert key["quantisation"].startswith("uint8")
    assert key["split"] == "test" and key["count"] == "450"


def test_other_images_splits_and_weights_are_other_files(counting, folder):
    changed = TEST.images.clone()
    changed[3, 0, 0, 0] += 1
    of(TEST, counting)
    for images in (changed, TEST.images[:449]):
        of(ImageSet(images, TEST.labels[: len(images)]), counting)
    reference.of_images(TEST, counting, Workers(), split="train")
    of(TEST, RandomExtractor())
    counting.sha256 = "other weights"
    of(TEST, counting)
    assert len(list(folder.glob("*.npz"))) == 6
    assert counting.seen == 4 * 450 + 449


def test_features_are_kept_if_asked_for(counting):
    of(TEST, counting)
    found = of(TEST, counting, keep=True)  # the file without features does not serve
    assert counting.seen == 900 and found.features.shape == (450, 64)
    again = of(TEST, counting, keep=True)
    assert counting.seen == 900 and torch.equal(again.features, found.features)


def test_a_damaged_file_is_computed_again(counting, folder):
    first = of(TEST, counting)
    (path,) = folder.glob("*.npz")
    path.write_bytes(path.read_bytes()[:1000])
    assert same(of(TEST, counting), first) and counting.seen == 900
    assert same(of(TEST, counting), first) and counting.seen == 900


def test_kept_features_that_are_not_finite_are_computed_again(counting, folder):
    first = of(TEST, counting, keep=True)
    (path,) = folder.glob("*.npy")
    broken = np.load(path)
    broken[3, 5] = np.nan
    np.save(path, broken)
    assert torch.equal(of(TEST, counting, keep=True).features, first.features)
    assert counting.seen == 900


@pytest.mark.parametrize("figure", ["kid", "precision_recall"])
@pytest.mark.parametrize("side", [0, 1])
def test_features_that_are_not_finite_have_no_figures(figure, side):
    pair = [torch.rand(1000, 64), torch.rand(1000, 64)]
    pair[side][3, 5] = np.nan
    with pytest.raises(ValueError, match="features must be finite"):
        quality.scores((figure,), ClassifierExtractor(), *pair, "n1000_test")


def test_of_many_at_once_one_computes(counting):
    """Locks of a file exclude threads that open it apart, as they do processes."""
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: of(TEST, counting), range(4)))
    assert counting.seen == 450 and all(same(each, found[0]) for each in found)


def test_a_folder_that_cannot_be_written_costs_only_the_cache(counting, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VAMF_CACHE", str(tmp_path / "file"))
    assert same(of(TEST, counting), of(TEST, counting)) and counting.seen == 900


class Second(Workers):
    """Rank 1 of two, whose sums already hold what rank 0 contributed."""

    def sum(self, tensor):
        return tensor.add_(self.given.pop(0).to(tensor))


def test_rank_0_hands_out_what_it_found(counting):
    whole = of(TEST, counting, keep=True)
    second, seen = Second(1, 2), counting.seen
    statistics = whole.statistics
    Second.given = [torch.tensor([1]), statistics.mean, statistics.covariance, whole.features]
    found = reference.of_images(TEST, counting, second, split="test", keep=True)
    assert same(found, whole) and torch.equal(found.features, whole.features)
    assert counting.seen == seen


def test_a_file_can_be_the_reference(tmp_path):
    """A split's statistics, written and read, give the split's own figure under another name."""
    path = tmp_path / "their stats.npz"
    FrechetDistance().save(Digits().load("test"), path, Workers())

    def figures(where):
        distance = FrechetDistance(samples=100, reference=where)
        distance.prepare(Digits())
        return distance.of_pixels(Digits().load("train").pixels, Digits(), Workers())

    named, own = figures(path), figures("test")
    assert list(named) == [
        "fd_digits_cnn64_v1_n100_their-stats",
        "fd_digits_cnn64_v1_n100_their-stats_unbiased",
    ]
    assert list(named.values()) == list(own.values())


def test_a_file_of_other_features_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    FrechetDistance(extractor="randconv64_v1").save(Digits().load("test"), path, Workers())
    distance = FrechetDistance(samples=100, reference=path)
    with pytest.raises(ValueError, match="extractor randconv64_v1 there, digits_cnn64_v1 here"):
        distance.of_pixels(Digits().load("train").pixels, Digits(), Workers())
    with pytest.raises(ValueError, match="extractor randconv64_v1 there, digits_cnn64_v1 here"):
        distance.prepare(Digits())  # before anything is trained
    with pytest.raises(ValueError, match="resolution 1x8x8 there, 3x32x32 here"):
        FrechetDistance(extractor="randconv64_v1", reference=path).prepare(CIFAR10())
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(ValueError, match=r"64 features, as digits_cnn64_v1 has; got 2048"):
        distance.of_pixels(Digits().load("train").pixels, Digits(), Workers())
    with pytest.raises(ValueError, match="kid and precision_recall need the reference's images"):
        FrechetDistance(samples=1000, reference=path, also=("kid",))


def test_an_extractor_for_other_images_is_refused_before_anything_is_trained():
    FrechetDistance().prepare(Digits())
    with pytest.raises(ValueError) as refusal:
        FrechetDistance().prepare(CIFAR10())
    assert str(refusal.value) == (
        "the extractor digits_cnn64_v1 is not for these data: "
        "images must be uint8 (N, 1, 8, 8); got torch.uint8 of shape (1, 3, 32, 32)"
    )


class Inception(RandomExtractor):
    """An extractor that goes by the name of Inception's, whose weights no test has."""

    id = INCEPTION_ID


def published(path, *names):
    arrays = {name: np.eye(64) if "sigma" in name else np.zeros(64) for name in names}
    np.savez(path, **arrays)
    return path


def test_statistics_from_another_resize_are_refused_for_small_images(tmp_path):
    path, cpu = published(tmp_path / "jax.npz", "ref_mu", "ref_sigma"), torch.device("cpu")
    line = r"must come from TensorFlow 1's resize .*; got .*jax\.npz, whose ref_mu and ref_sigma"
    with pytest.raises(ValueError, match=line):
        reference.of_file(path, Inception(), (3, 32, 32), cpu)
    assert reference.of_file(path, Inception(), (3, 256, 256), cpu).statistics.mean.sum() == 0
    assert "half-pixel" in reference.caution(path, Inception())


@pytest.mark.parametrize(("height", "width", "small"), [(64, 8, True), (65, 8, False)])
def test_images_are_small_by_their_longer_side(tmp_path, height, width, small):
    path, cpu = published(tmp_path / "jax.npz", "ref_mu", "ref_sigma"), torch.device("cpu")
    for shape in ((3, height, width), (3, width, height)):
        if small:
            with pytest.raises(ValueError, match="images of up to 64 pixels"):
                reference.of_file(path, Inception(), shape, cpu)
        else:
            assert reference.of_file(path, Inception(), shape, cpu).features is None


def test_a_file_that_does_not_say_how_it_was_made_is_noted(tmp_path, capsys):
    path = published(tmp_path / "theirs.npz", "mu", "sigma")
    message = reference.caution(path, Inception())
    assert "theirs.npz does not say which resize its features come from" in message
    assert "TensorFlow 1's" in message and "\n" not in message
    adm = published(tmp_path / "adm.npz", "mu", "sigma", "mu_s", "sigma_s")
    assert reference.caution(adm, Inception()) is None
    FrechetDistance(samples=100, reference=path).prepare(Digits())
    assert capsys.readouterr().out == (
        f"note: {path} does not say which features it is of; "
        "they must be those of digits_cnn64_v1\n"
    )
    own = tmp_path / "own.npz"
    FrechetDistance().save(Digits().load("test"), own, Workers())
    FrechetDistance(samples=100, reference=own).prepare(Digits())
    assert capsys.readouterr().out == ""
