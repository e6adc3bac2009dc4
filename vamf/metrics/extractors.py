"""Networks that compute the features of a Fréchet distance, and the names of these distances."""

from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, get_args, runtime_checkable

import torch
from torch import Tensor

from vamf.compat import torch_fidelity
from vamf.metrics import cnn, inception_weights, randconv
from vamf.strict_fp32 import strict_fp32
from vamf.typing import Features, Label, Pixels

INCEPTION_ID = torch_fidelity.INCEPTION
ExtractorName = Literal[
    "digits_cnn64_v1", "mnist_cnn64_v1", "cifar10_cnn64_v1", "randconv64_v1", "inception"
]

ENLARGED_AT_ONCE = {"cpu": 8, "cuda": 256}
"""Images of 299x299 in one call of Inception: 8 fit into a CPU's cache and are 1.5 times as fast as
32; 256 take 4 GB of a GPU, which is not faster with more."""


@runtime_checkable
class Extractor(Protocol):
    """A fixed function from images to features, identified by its id and its weights' hash."""

    @property
    def id(self) -> str:
        """The network's name and version; another version is another distance."""
        ...

    @property
    def prefix(self) -> str:
        """The name of its Fréchet distance: "fid" for Inception, otherwise "fd_" and the id."""
        ...

    @property
    def dim(self) -> int:
        """The number of features, at least 1."""
        ...

    @property
    def sha256(self) -> str:
        """The SHA-256 of the weights, in hexadecimal."""
        ...

    def __call__(self, images: Pixels) -> Features:
        """Features (n, dim), float32, of uint8 images (n, C, H, W), on the images' device.

        Computed in strict float32 and without gradients. Raises ValueError for another dtype, or
        for a shape that the network does not take.
        """
        ...

    def to(self, device: torch.device | str) -> Self:
        """Moves the network in place and returns itself; images must be on the same device."""
        ...


def metric_key(extractor: Extractor, n: int, reference: str) -> str:
    """The name of a distance of n samples, for example "fd_digits_cnn64_v1_n1000_train".

    It contains what distances must share to be comparable: extractor, n and reference. Raises
    ValueError for a name beginning with "fid" unless the published Inception network is used.
    """
    if n < 2:
        raise ValueError(f"n must be at least 2; got {n}")
    published = extractor.sha256.startswith(inception_weights.SHA256_PREFIX)
    if extractor.prefix.startswith("fid") and not (extractor.id == INCEPTION_ID and published):
        raise ValueError(
            f"a prefix beginning with 'fid' must belong to {INCEPTION_ID} with weights "
            f"{inception_weights.SHA256_PREFIX}...; got {extractor.prefix!r} of {extractor.id}"
        )
    return f"{extractor.prefix}_n{n}_{reference}"


def prefix_of(name: ExtractorName) -> str:
    """The name of the distance with this extractor, without building it."""
    return InceptionExtractor.prefix if name == "inception" else f"fd_{name}"


def build(name: ExtractorName, weights: Path | None = None) -> Extractor:
    """The extractor of that name on the CPU, with weights from ``weights`` or the default file.

    Raises ValueError for an unknown name, or if the weights are missing or have a wrong hash.
    """
    if name == "inception":
        return InceptionExtractor(weights)
    if name in cnn.SHIPPED:
        return ClassifierExtractor(name, weights)
    if name == "randconv64_v1":
        return RandomExtractor()
    names = ", ".join(get_args(ExtractorName))
    raise ValueError(f"name must be one of {names}; got {name!r}")


class ClassifierExtractor:
    """The 64 features of a classifier that ships with vamf, for images of its training's shape."""

    dim: ClassVar[int] = cnn.DIM

    def __init__(self, name: str = "digits_cnn64_v1", weights: Path | None = None) -> None:
        """Raises ValueError unless the weights equal the shipped ones byte for byte."""
        self.id, self.prefix = name, f"fd_{name}"
        self.sha256 = cnn.SHIPPED[name].sha256
        path = weights or cnn.weights_of(name)
        found = cnn.file_sha256(path)
        if found != self.sha256:
            raise ValueError(f"{path} must have SHA-256 {self.sha256}; got {found}")
        self.network = cnn.CNN.load(name, path)

    def __call__(self, images: Pixels) -> Features:
        """Features (n, 64) of uint8 images (n, C, H, W)."""
        with strict_fp32():
            return self.network(images)

    def classify(self, images: Pixels) -> Label:
        """The predicted class of each image, (n,) int64."""
        with strict_fp32():
            return self.network.head(self.network(images)).argmax(1)

    def counts(self, images: Pixels) -> list[int]:
        """The number of images in each of the ten predicted classes."""
        return self.classify(images).bincount(minlength=10).tolist()

    def to(self, device: torch.device | str) -> Self:
        """Moves the network in place."""
        self.network.to(device)
        return self


class RandomExtractor:
    """64 features of untrained convolutions, for grey or colour images of any size."""

    id: ClassVar[str] = randconv.NAME
    prefix: ClassVar[str] = f"fd_{randconv.NAME}"
    dim: ClassVar[int] = randconv.DIM

    def __init__(self) -> None:
        self.network = randconv.RandomConvolutions()
        self.sha256 = self.network.sha256()

    def __call__(self, images: Pixels) -> Features:
        """Features (n, 64) of uint8 images (n, 1 or 3, H, W); grey is repeated to RGB."""
        with strict_fp32():
            return self.network(_as_rgb(images))

    def to(self, device: torch.device | str) -> Self:
        """Moves the network in place."""
        self.network.to(device)
        return self


class InceptionExtractor:
    """The network of the FID: Inception of 2015-12-05, pool3, TensorFlow 1's resize."""

    id: ClassVar[str] = INCEPTION_ID
    prefix: ClassVar[str] = "fid"
    dim: ClassVar[int] = 2048

    def __init__(self, weights: Path | None = None) -> None:
        """Finds or downloads the weights; ValueError if they are missing or have a wrong hash."""
        path, self.sha256 = inception_weights.find(weights)
        self.network: Any = torch_fidelity.inception(path)
        self.to("cpu")

    def __call__(self, images: Pixels) -> Features:
        """Features (n, 2048) of uint8 images (n, 1 or 3, H, W); grey is repeated to RGB.

        Images are enlarged to 299x299 in small groups, which limits the memory.
        """
        parts = _as_rgb(images).split(ENLARGED_AT_ONCE.get(images.device.type, 8))
        with strict_fp32():
            return torch.cat([self.network(part)[0] for part in parts])

    def logits(self, features: Features) -> Tensor:
        """The classifier's values without their biases, (n, 1008), for the Inception score."""
        weight = self.network.fc.weight
        with strict_fp32():
            return features.to(weight.device) @ weight.T

    def to(self, device: torch.device | str) -> Self:
        """Moves the network in place."""
        # 1.6 times as fast on a CPU, and a sixth slower in float32 on an H200.
        last = torch.device(device).type == "cpu"
        layout = torch.channels_last if last else torch.contiguous_format
        self.network.to(device, memory_format=layout)
        return self


def _as_rgb(images: Pixels) -> Pixels:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        found = f"{images.dtype} of shape {tuple(images.shape)}"
        raise ValueError(f"images must be uint8 (N, 1 or 3, H, W); got {found}")
    return images.expand(-1, 3, -1, -1)
