"""Extractors: what they measure, what they are called, and what they refuse."""

import subprocess
import sys
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pytest
import torch
from helpers.pictures import real, unpack_real_cifar10, write_real_mnist
from scipy.signal import correlate2d
from torch.nn import functional

from vamf.data.digits import Digits
from vamf.data.image_folder import ImageFolder
from vamf.data.torchvision_sets import MNIST
from vamf.metrics import cnn, inception_weights
from vamf.metrics.extractors import (
    ClassifierExtractor,
    ExtractorName,
    InceptionExtractor,
    build,
    metric_key,
)
from vamf.metrics.frechet import frechet_distance
from vamf.metrics.moments import FeatureMoments
from vamf.metrics.train_cnn import export, unfolded
from vamf.rng import generator
from vamf.strict_fp32 import strict_fp32

EXTRACTOR = ClassifierExtractor()
TRAIN, TEST = Digits().load("train"), Digits().load("test")


def statistics(images, extractor=EXTRACTOR):
    moments = FeatureMoments(extractor.dim)
    for part in images.split(200):
        moments.update(extractor(part))
    return moments.statistics()


REFERENCE = statistics(TRAIN.images)


def distance(images):
    return frechet_distance(statistics(images), REFERENCE)


def pixels(x):
    return x.round().clamp(0, 255).to(torch.uint8)


def noisy(images, sigma):
    noise = torch.randn(images.shape, generator=generator("noise"))
    return pixels(images.float() + sigma * noise)


def blurred(images, sigma):
    kernel = torch.exp(-torch.arange(-2, 3).square() / (2 * sigma**2))
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    return pixels(functional.conv2d(images.float(), kernel[None, None], padding=2))


def test_features_are_fp32_without_gradients_and_independent_of_the_batch():
    features = EXTRACTOR(TEST.images)
    assert features.shape == (450, 64) and features.dtype == torch.float32
    assert not features.requires_grad and features.min() >= 0
    apart = torch.cat([EXTRACTOR(part) for part in TEST.images.split(7)])
    torch.testing.assert_close(apart, features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "mean", "last"),
    [
        ("digits_cnn64_v1", 0.520884, 0.169021),
        ("mnist_cnn64_v1", 1.50236, 0.310962),
        ("cifar10_cnn64_v1", 0.904789, 2.08706),
    ],
)
def test_features_are_what_they_were(name, mean, last):
    """Of one picture without chance; the weights' file does not say the strides."""
    c, h, w = (torch.arange(size) for size in cnn.SHIPPED[name].shape)
    picture = (29 * c[:, None, None] + 7 * h[:, None] + 13 * w) % 256
    (features,) = build(name)(picture.byte()[None])
    assert [features.mean().item(), features[-1].item()] == pytest.approx([mean, last], rel=1e-4)


def test_untrained_convolutions_have_he_normal_weights():
    """Deviation sqrt(2 / fan-in), so that ReLU layers keep the mean square of what they get."""
    channels = 3
    for weight in build("randconv64_v1").network.buffers():
        assert weight.shape[1:] == (channels, 3, 3)
        std = (2 / (9 * channels)) ** 0.5
        assert abs(weight.std() / std - 1) < 5 / (2 * weight.numel()) ** 0.5
        assert abs(weight.mean()) < 5 * std / weight.numel() ** 0.5
        channels = len(weight)
    assert channels == 64


def test_untrained_convolutions_by_scipy():
    """3x3 filters over the image in a border of zeros, every or every second one, and ReLU."""
    extractor = build("randconv64_v1")
    images = torch.randint(256, (2, 3, 9, 6), generator=generator("randconv")).byte()
    for image, found in zip(images, extractor(images), strict=True):
        x = image.double().numpy() / 127.5 - 1
        for weight, stride in zip(extractor.network.buffers(), (1, 2, 2, 2), strict=True):
            maps = [
                sum(correlate2d(c, k, "same") for c, k in zip(x, kernels, strict=True))
                for kernels in weight.double().numpy()
            ]
            x = np.maximum(np.stack(maps)[:, ::stride, ::stride], 0)
        np.testing.assert_allclose(found, x.mean((1, 2)), rtol=1e-4, atol=1e-6)  # float32
    grey = images[:, :1]
    assert torch.equal(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))


def test_classifies_the_test_images():
    right = EXTRACTOR.classify(TEST.images) == TEST.labels
    assert right.float().mean() > 0.99


def test_distances_order_degradations():
    real = distance(TEST.images)
    noise = [distance(noisy(TEST.images, sigma)) for sigma in (20, 40, 80, 160)]
    blur = [distance(blurred(TEST.images, sigma)) for sigma in (0.6, 1, 2)]
    missing = [distance(TEST.images[TEST.labels >= k]) for k in (1, 3, 9)]
    uniform = distance(torch.randint(256, (450, 1, 8, 8), generator=generator(0)).byte())
    for worse in (noise, blur, missing, [uniform]):
        assert [real, *worse] == sorted([real, *worse])
    # One class of ten absent, or visible noise, stands clear of the floor of 450 samples.
    assert min(missing[0], noise[1], blur[1]) > 2 * real and uniform > 20 * real


@dataclass
class Pictures(torch.utils.data.Dataset):
    """What torch-fidelity takes for images: one tensor an item."""

    images: torch.Tensor

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@pytest.mark.parametrize("sigma", [0, 40])
def test_equals_torch_fidelity(sigma):
    """Its mean is summed in float32, which alone makes the figures differ by up to 1e-6."""
    import torch_fidelity
    from helpers import fidelity

    fidelity.register()
    generated = noisy(TEST.images, sigma)
    theirs = torch_fidelity.calculate_metrics(
        input1=Pictures(generated),
        input2=Pictures(TRAIN.images),
        feature_extractor="digits_cnn64_v1",
        fid=True,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    (value,) = theirs.values()
    assert distance(generated) == pytest.approx(value, rel=3e-6)


@pytest.mark.parametrize("sigma", [0, 40])
def test_equals_torch_fidelity_of_float64_features(sigma):
    """Without the float32 mean only its eigenvalues' rounding is left."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    generated = noisy(TEST.images, sigma)
    both = [
        fid_features_to_statistics(EXTRACTOR(images).double())
        for images in (generated, TRAIN.images)
    ]
    (value,) = fid_statistics_to_metric(*both, False).values()
    assert distance(generated) == pytest.approx(value, rel=1e-9)


@real
def test_mnists_classifier_knows_real_images(tmp_path):
    """It names nine hundred and ninety of a thousand, and finds what degrades them."""
    write_real_mnist(tmp_path)
    data = MNIST(root=tmp_path)
    extractor = build("mnist_cnn64_v1")
    images, labels = data.load("test").images, data.load("test").labels
    assert (extractor.classify(images) == labels).float().mean() > 0.99
    assert extractor.counts(images) == pytest.approx(labels.bincount().tolist(), abs=20)
    reference = statistics(data.load("train").images[::6], extractor)
    changed = (images, noisy(images, 20), noisy(images, 80), images[labels > 2])
    found = [frechet_distance(statistics(x, extractor), reference) for x in changed]
    assert found[0] < min(found[1:]) / 20 and found[1] < found[2]


@real
@pytest.mark.slow  # unpacks 10,000 files
def test_cifars_classifier_knows_real_images(tmp_path):
    """It names 86 of 100 test images, and finds what degrades them."""
    root = unpack_real_cifar10(tmp_path)
    data = ImageFolder(root=root, size=32, crop="exact", classes=10).load("train")
    extractor = build("cifar10_cnn64_v1")
    images, labels = data.images[::5], data.labels[::5]
    assert (extractor.classify(images) == labels).float().mean() > 0.85
    reference = statistics(data.images[1::5], extractor)
    changed = (images, noisy(images, 10), noisy(images, 80), images[labels > 0])
    found = [frechet_distance(statistics(x, extractor), reference) for x in changed]
    assert found[0] < min(found[1:]) / 5 and found[1] < found[2]


@pytest.mark.parametrize("name", cnn.SHIPPED)
def test_weights_are_the_published_ones(name):
    path = cnn.weights_of(name)
    assert path.stat().st_size < 2_000_000
    assert cnn.file_sha256(path) == build(name).sha256
    assert build(name).sha256 in (path.parent / "README.md").read_text()


def test_changed_digits_weights_are_refused(tmp_path):
    path = tmp_path / "weights.npz"
    network = cnn.CNN.load("digits_cnn64_v1")
    network.save(path)
    assert build("digits_cnn64_v1", path).sha256 == EXTRACTOR.sha256
    network.head.bias += 1
    network.save(path)
    with pytest.raises(ValueError, match="must have SHA-256"):
        build("digits_cnn64_v1", path)


def test_folding_keeps_the_function():
    network = unfolded("digits_cnn64_v1")
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(64, 1, 8, 8, generator=generator("fold")))
        folded = export("digits_cnn64_v1", network.eval())
        expected = network(TEST.images[:32].float() / 127.5 - 1)
        found = folded.head(folded(TEST.images[:32]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)]
)
def test_other_images_are_refused(images):
    with pytest.raises(ValueError, match=r"images must be uint8 \(N, 1, 8, 8\); got"):
        EXTRACTOR(images)


@dataclass
class Named:
    """An extractor of which only the name matters."""

    id: str
    prefix: str
    sha256: str = "6726825d" + "0" * 56


def test_keys_carry_extractor_count_and_reference():
    assert metric_key(EXTRACTOR, 1000, "train") == "fd_digits_cnn64_v1_n1000_train"
    inception = Named(InceptionExtractor.id, InceptionExtractor.prefix)
    assert metric_key(inception, 50_000, "train") == "fid_n50000_train"
    with pytest.raises(ValueError, match="n must be at least 2; got 1"):
        metric_key(EXTRACTOR, 1, "train")


@pytest.mark.parametrize("prefix", ["fid", "fid_digits"])
@pytest.mark.parametrize(
    ("name", "sha256"), [("digits_cnn64_v1", "6726825d"), ("inception-v3-compat", "00")]
)
def test_only_inception_is_called_fid(prefix, name, sha256):
    with pytest.raises(ValueError, match="must belong to inception-v3-compat"):
        metric_key(Named(name, prefix, sha256), 1000, "train")


def test_no_other_extractor_has_such_a_prefix():
    others = {*get_args(ExtractorName)} - {"inception"}
    assert others == {*cnn.SHIPPED, "randconv64_v1"}
    assert not any(build(name).prefix.startswith("fid") for name in others)
    with pytest.raises(ValueError, match=r"name must be .*; got 'vgg'"):
        build("vgg")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch.hub folder and no network."""

    def offline(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path


def test_absent_inception_weights_are_refused_in_one_line(hub):
    with pytest.raises(ValueError, match="nothing replaces them") as caught:
        build("inception")
    message = str(caught.value)
    place = hub / "checkpoints" / inception_weights.FILE
    assert inception_weights.URL in message and str(place) in message and "\n" not in message
    with pytest.raises(ValueError, match="got no file at"):
        build("inception", hub / "elsewhere.pth")


def test_wrong_inception_weights_are_refused(hub):
    place = hub / "checkpoints" / inception_weights.FILE
    place.parent.mkdir()
    place.write_bytes(b"other weights")
    for path in (None, place):
        with pytest.raises(ValueError, match=r"begins with 6726825d.* got"):
            build("inception", path)


def test_inception_plumbing_with_random_weights(hub, monkeypatch):
    """Everything but the weights: grey becomes RGB, the figure is torch-fidelity's layer 2048."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    weights = {}
    monkeypatch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
    monkeypatch.setattr(inception_weights, "SHA256_PREFIX", "")
    path = hub / "random.pth"
    torch.save(weights, path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        extractor = build("inception", path)
    grey = TEST.images[:2]
    features = extractor(grey)
    assert features.shape == (2, 2048) and features.dtype == torch.float32
    assert torch.equal(features, extractor.to("cpu")(grey.repeat(1, 3, 1, 1)))
    assert extractor.prefix == "fid" and len(extractor.sha256) == 64
    with pytest.raises(ValueError, match="images must be uint8"):
        extractor(grey.float())


def test_strict_fp32_restores_every_setting():
    backends = torch.backends
    watched = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.conv)
    before = [each.fp32_precision for each in watched], backends.cudnn.benchmark
    with pytest.raises(KeyError), torch.autocast("cpu", torch.bfloat16), strict_fp32():
        assert all(each.fp32_precision == "ieee" for each in watched)
        assert not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        raise KeyError
    assert ([each.fp32_precision for each in watched], backends.cudnn.benchmark) == before
    assert torch.is_grad_enabled()


def test_torch_fidelity_is_imported_only_where_needed():
    code = "import sys, vamf.metrics.extractors as e; e.ClassifierExtractor();"
    code += "sys.exit(any(m.split('.')[0] == 'torch_fidelity' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
