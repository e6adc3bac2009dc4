"""Small classifiers that ship with vamf; distances of images are computed from their features."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from vamf.files import write_whole
from vamf.typing import Features, Pixels

WEIGHTS = Path(__file__).parent / "weights"

DIM = 64


@dataclass(frozen=True)
class Shipped:
    """A network whose weights are in ``WEIGHTS``, as ``NAME.npz``."""

    shape: tuple[int, int, int]
    """Shape of its training images, (C, H, W); it accepts no other."""
    layers: tuple[tuple[int, int, int], ...]
    """(channels, kernel, stride) of each convolution; a ReLU follows each."""
    sha256: str
    """SHA-256 of the weights file. The rounded weights define the features."""


COLOUR = (
    *((48, 3, 1), (96, 3, 2), (96, 3, 1), (160, 3, 2), (160, 3, 1), (160, 3, 1)),
    (DIM, 1, 1),
)
GREY = ((24, 3, 1), (48, 3, 2), (48, 3, 1), (96, 3, 2), (96, 3, 1), (DIM, 1, 1))

SHIPPED = {
    "digits_cnn64_v1": Shipped(
        (1, 8, 8), GREY, "5ef99c266f278119ac4ffc765fff353225ec5841b646d90742ae44aa9bd5e420"
    ),
    "mnist_cnn64_v1": Shipped(
        (1, 28, 28), GREY, "e646c092ffb45a07e826cf0ad8efe7bea56fcc3947ed36812d703c003a3e1ee1"
    ),
    "cifar10_cnn64_v1": Shipped(
        (3, 32, 32), COLOUR, "73b1259baba26aed29c4f60fe07e02990728ff18e24f6254c3e9e969800fcaf3"
    ),
}


class CNN(nn.Module):
    """Convolutions and the average over the last map; a linear head classifies into ten classes."""

    def __init__(self, name: str) -> None:
        """``name`` is one of ``SHIPPED``; the weights are random until they are loaded."""
        super().__init__()
        self.shape, layers = SHIPPED[name].shape, SHIPPED[name].layers
        inputs = (self.shape[0], *(channels for channels, _, _ in layers))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, kernel, stride=stride, padding=kernel // 2)
            for i, (o, kernel, stride) in zip(inputs, layers, strict=False)
        )
        self.head = nn.Linear(DIM, 10)

    def forward(self, images: Pixels) -> Features:
        """Features, (N, 64) and not negative.

        Raises ValueError unless the images are uint8 of shape (N, C, H, W) as in training.
        """
        if images.dtype != torch.uint8 or images.shape[1:] != self.shape:
            wanted = ", ".join(map(str, self.shape))
            found = f"{images.dtype} of shape {tuple(images.shape)}"
            raise ValueError(f"images must be uint8 (N, {wanted}); got {found}")
        x = normalise(images)
        for convolution in self.convolutions:
            x = convolution(x).relu()
        return x.mean(dim=(2, 3))

    @classmethod
    def load(cls, name: str, path: Path | None = None) -> Self:
        """The network with its float16 weights as float32, from ``path`` or the shipped file."""
        network = cls(name)
        with np.load(path or weights_of(name), allow_pickle=False) as stored:
            arrays = {key: torch.from_numpy(stored[key]).float() for key in stored.files}
        network.load_state_dict(arrays)
        return network.requires_grad_(False).eval()

    def save(self, path: Path) -> None:
        """Writes the weights, rounded to float16."""
        arrays = {key: value.half().cpu().numpy() for key, value in self.state_dict().items()}
        write_whole(path, lambda file: np.savez(file, **arrays))


def weights_of(name: str) -> Path:
    """The shipped file of weights."""
    return WEIGHTS / f"{name}.npz"


def normalise(images: Pixels) -> Tensor:
    """uint8 pixels as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
