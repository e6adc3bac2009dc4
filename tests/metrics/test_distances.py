"""A figure depends on the images alone, and is torch-fidelity's own."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.multiprocessing as mp
from helpers.group import member

from vamf.data.dataset import ImageSet
from vamf.data.digits import Digits
from vamf.data.toys import Toy
from vamf.distributed import Workers
from vamf.metrics import cnn, distances, gathering, inception_weights
from vamf.metrics.distances import (
    FrechetDistance,
    Measurement,
    SlicedWasserstein,
    mean_with_error,
)
from vamf.metrics.extractors import (
    INCEPTION_ID,
    ClassifierExtractor,
    build,
)
from vamf.rng import generator

TRAIN = Digits().load("train")
QUIET = {"cuda": False, "cache": False, "save_cpu_ram": True, "verbose": False}


@dataclass
class Pictures(torch.utils.data.Dataset):
    """What torch-fidelity takes for images: one tensor an item."""

    images: torch.Tensor

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@dataclass(frozen=True)
class Fixed:
    """A source of given images."""

    images: torch.Tensor

    def __hash__(self):
        return id(self.images)

    def load(self, split):
        return ImageSet(self.images, torch.zeros(len(self.images)).long())


def noisy(images, sigma):
    noise = torch.randn(images.shape, generator=generator("noisy"))
    return (images.float() + sigma * noise).round().clamp(0, 255).to(torch.uint8)


def measured(distance, images, source, workers=Workers()):  # noqa: B008
    found = replace(distance, samples=len(images)).of_pixels(
        lambda indices: images[list(indices)], source, workers
    )
    return {name: figure.value for name, figure in found.items()}


def test_all_figures_equal_torch_fidelity():
    """Of 1,347 images; its own mean, summed in float32, is what 1e-6 allows for."""
    import torch_fidelity
    from helpers import fidelity

    fidelity.register()
    generated = noisy(TRAIN.images, 30)
    theirs = torch_fidelity.calculate_metrics(
        input1=Pictures(generated),
        input2=Pictures(TRAIN.images),
        feature_extractor="digits_cnn64_v1",
        **QUIET | {"fid": True, "kid": True, "prc": True},
    )
    distance = FrechetDistance(samples=1347, also=("kid", "precision_recall"))
    own = measured(distance, generated, Digits())
    name, end = "digits_cnn64_v1", "n1347_train"
    pairs = {
        f"fd_{name}_{end}": "frechet_inception_distance",
        f"mmd_{name}_{end}": "kernel_inception_distance_mean",
        f"precision_{name}_{end}": "precision",
        f"recall_{name}_{end}": "recall",
    }
    assert own.keys() == pairs.keys() | {f"fd_{name}_{end}_unbiased"}
    for mine, its in pairs.items():
        assert own[mine] == pytest.approx(theirs[its], rel=1e-6)
    assert own[f"fd_{name}_{end}_unbiased"] < own[f"fd_{name}_{end}"]


@pytest.mark.parametrize("at_once", [7, 50, 1000])
def test_batches_and_order_do_not_matter(at_once, monkeypatch):
    monkeypatch.setattr(gathering, "AT_ONCE", at_once)
    generated = noisy(TRAIN.images[:401], 30)
    expected = FrechetDistance().key.replace("n1000", "n401")
    whole = measured(FrechetDistance(), generated, Digits())[expected]
    shuffled = generated[torch.randperm(401, generator=generator("order"))]
    assert measured(FrechetDistance(), shuffled, Digits())[expected] == pytest.approx(
        whole, rel=1e-6
    )
    direct = ClassifierExtractor()(generated).double()
    found = gathering.gather(
        ClassifierExtractor(), lambda i: generated[list(i)], 401, 20, Workers(), keep=True
    )
    # Convolutions of other batch sizes round differently, in float32.
    torch.testing.assert_close(found.features.double(), direct, rtol=1e-4, atol=1e-5)
    assert {block.count for block in found.blocks} == {20, 21}


def test_files_in_the_order_of_their_classes_have_the_same_error():
    """In that order a group of the jackknife would be half a class, and its error absurd."""
    order = TRAIN.labels.argsort()
    by_class = ImageSet(noisy(TRAIN.images, 30)[order], TRAIN.labels[order])
    mixed = FrechetDistance(samples=1347).of_pixels(
        lambda indices: noisy(TRAIN.images, 30)[list(indices)], Digits(), Workers()
    )
    for name, figure in FrechetDistance().of_images(by_class, Digits(), Workers()).items():
        assert figure.value == pytest.approx(mixed[name].value, rel=0.01, abs=mixed[name].error)
        assert figure.error == pytest.approx(mixed[name].error, rel=0.7)  # 1 / sqrt(38) each


def work(rank, folder):
    """One of two processes: both measure, with statistics that none of them has yet."""
    torch.set_num_threads(1)
    with member(rank, folder):
        distance = FrechetDistance(also=("precision_recall",))
        found = [measured(distance, noisy(TRAIN.images[:301], 30), Digits(), Workers(rank, 2))]
        distances._reference.cache_clear()
        found.append(measured(distance, noisy(TRAIN.images[:301], 30), Digits(), Workers(rank, 2)))
        torch.save(found, folder / f"{rank}.pt")


@pytest.mark.slow  # two processes that each import torch
def test_two_workers_measure_as_one_does(tmp_path, monkeypatch):
    """At first together, then with rank 0's file."""
    monkeypatch.setenv("VAMF_CACHE", str(tmp_path / "cache"))
    mp.spawn(work, (tmp_path,), nprocs=2)
    alone = measured(
        FrechetDistance(also=("precision_recall",)), noisy(TRAIN.images[:301], 30), Digits()
    )
    for rank in (0, 1):
        for found in torch.load(tmp_path / f"{rank}.pt"):
            assert found == pytest.approx(alone, rel=1e-6)


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    """A file in the form of the published one: a state dictionary, of random weights."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    kind, path = theirs.FeatureExtractorInceptionV3, tmp_path_factory.mktemp("weights") / "w.pth"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(kind, "load_state_dict", lambda *_: None)
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        torch.manual_seed(0)
        network = kind(INCEPTION_ID, ["2048"])
    for name, value in network.named_parameters():
        if ".conv." in name:  # He's gain keeps deep features alive
            torch.nn.init.kaiming_normal_(value, nonlinearity="relu")
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.slow  # Inception on a CPU
def test_fid_equals_torch_fidelity_with_random_weights(random_weights, monkeypatch):
    """Features to float32 rounding; of the distance what so few images leave of their eigenvalues.

    12 images of 2,048 features: covariances of rank 11, of which torch-fidelity takes the
    eigenvalues of a product that is not symmetric.
    """
    import torch_fidelity

    digest = cnn.file_sha256(random_weights)
    monkeypatch.setattr(inception_weights, "SHA256_PREFIX", digest[:8])
    g = generator("inception")
    real, generated = (
        torch.randint(high, (12, 3, 32, 32), generator=g).byte() for high in (256, 200)
    )
    options = {"feature_extractor_weights_path": str(random_weights), "batch_size": 5}
    theirs = torch_fidelity.calculate_metrics(
        input1=Pictures(generated),
        input2=Pictures(real),
        feature_extractor=INCEPTION_ID,
        **QUIET | options | {"fid": True, "isc": True},
    )
    extractor = build("inception", random_weights)
    made, there = (
        gathering.gather(extractor, Fixed(each).load("train").pixels, 12, 2, Workers(), keep=True)
        for each in (generated, real)
    )
    reference = there.blocks[0].merge(there.blocks[1]).statistics()
    own = distances.frechet_with_error(made.blocks, reference)
    assert own.value == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    mean, error = distances.quality.inception_score(extractor, made.features)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert error == pytest.approx(theirs["inception_score_std"] / 10**0.5, rel=1e-3)


def test_key_needs_no_weights(monkeypatch, tmp_path):
    """What a figure is called is known before anything is built or fetched."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert FrechetDistance(extractor="inception", samples=50_000).key == "fid_n50000_train"
    key = FrechetDistance(extractor="randconv64_v1", reference="test").key
    assert key == "fd_randconv64_v1_n1000_test"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"also": ("kid",), "samples": 999}, "kid needs at least 1000 samples; got 999"),
        ({"also": ("inception_score",)}, "needs the extractor inception"),
        ({"samples": 39}, "samples must be at least 40; got 39"),
    ],
)
def test_figures_that_cannot_be_are_refused(settings, line):
    with pytest.raises(ValueError, match=line):
        FrechetDistance(**settings)


def test_kid_needs_as_many_real_images():
    distance = FrechetDistance(samples=1000, reference="test", also=("kid",))
    with pytest.raises(ValueError, match="on both sides; got 1000 generated and 450 real"):
        distance.of_pixels(TRAIN.pixels, Digits(), Workers())


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (3.7149, 0.3812, "3.71 ± 0.38"),
        (0.123456, 0.00123, "0.1235 ± 0.0012"),
        (0.123456, 0.000234, "0.12346 ± 0.00023"),
        (-0.5, 1.25, "-0.5 ± 1.2"),
        (1234.6, 45.6, "1235 ± 46"),
        (123456.0, 4567.0, "123456 ± 4567"),
        (1234567.0, 45678.0, "1.23e+06 ± 5e+04"),  # beyond: powers of ten
        (1.2345e-5, 2.34e-6, "1.23e-05 ± 2e-06"),
        (1.2345e-4, 2.34e-5, "0.000123 ± 2e-05"),
        (12.34567, 0.0, "12.35"),  # no error is known
        (12.34567, math.nan, "12.35"),
        (12.34567, math.inf, "12.35"),
    ],
)
def test_a_measurement_is_rounded_to_two_digits_of_its_error(value, error, text):
    assert str(Measurement(value, error)) == text


def test_the_mean_of_repetitions_has_their_standard_error():
    """Of 1, 2, 3 and 6: 3, and sqrt(14 / 3 / 4), summed in float64."""
    found = mean_with_error(torch.tensor([1.0, 2.0, 3.0, 6.0]) + 2**20)
    assert found == pytest.approx((2**20 + 3, (14 / 3 / 4) ** 0.5), rel=1e-12)


def test_sliced_wasserstein_distances_of_a_shift():
    """Points and noise of one index are the same: what is left is the shift, of order 1 and 2."""
    data, shift = Toy(name="two_moons"), torch.tensor([3.0, -4.0])
    distance = SlicedWasserstein(samples=300, directions=400, repetitions=5)
    asked = []

    def generate(indices):
        asked.append(indices)
        g = generator(7, "sliced_wasserstein", len(asked) - 1)
        return data.load("test").draw(300, g) + shift

    found = distance(generate, data, Workers(), 7)
    assert asked == [range(300 * k, 300 * (k + 1)) for k in range(5)]
    assert list(found) == [distance.key, "sw2_n300"] == ["sw1_n300", "sw2_n300"]
    # E|<direction, shift>| = 2 |shift| / pi, E<direction, shift>^2 = |shift|^2 / 2, |shift| = 5.
    for (value, error), expected in zip(
        found.values(), (10 / math.pi, 5 / math.sqrt(2)), strict=True
    ):
        assert 0 < error < 0.1 and abs(value - expected) < 5 * error
    distance.prepare(data)


@pytest.mark.parametrize("wrong", [{"samples": 1}, {"directions": 0}, {"repetitions": 1}])
def test_sliced_wasserstein_needs_something_to_average_over(wrong):
    with pytest.raises(ValueError, match="at least 2 samples, 1 direction and 2 repetitions"):
        SlicedWasserstein(**wrong)
    assert SlicedWasserstein(samples=2, directions=1, repetitions=2).key == "sw1_n2"
