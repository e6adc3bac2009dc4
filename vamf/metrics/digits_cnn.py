"""A small convolutional network for 8x8 digits: its 64 features carry the digits' distance."""

import hashlib
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from vamf.typing import Features, Pixels

WEIGHTS = Path(__file__).parent / "weights" / "digits_cnn64_v1.npz"

SHA256 = "5ef99c266f278119ac4ffc765fff353225ec5841b646d90742ae44aa9bd5e420"
"""Of the weights file. The rounded weights are the definition of the features."""

DIM = 64

LAYERS = (
    (1, 24, 3, 1),
    (24, 48, 3, 2),
    (48, 48, 3, 1),
    (48, 96, 3, 2),
    (96, 96, 3, 1),
    (96, DIM, 1, 1),
)
"""(channels in, channels out, kernel, stride) of each convolution; a ReLU follows each."""


class DigitsCNN(nn.Module):
    """Six convolutions and the average over the last 2x2 map; a linear head names the digit."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, kernel, stride=stride, padding=kernel // 2)
            for i, o, kernel, stride in LAYERS
        )
        self.head = nn.Linear(DIM, 10)

    def forward(self, images: Pixels) -> Features:
        """Features, (N, 64) and not negative, of images (N, 1, 8, 8)."""
        x = normalise(images)
        for convolution in self.convolutions:
            x = convolution(x).relu()
        return x.mean(dim=(2, 3))

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Self:
        """The network with the float16 weights of ``path``, to be computed in float32."""
        network = cls()
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: torch.from_numpy(stored[name]).float() for name in stored.files}
        network.load_state_dict(arrays)
        return network.requires_grad_(False).eval()

    def save(self, path: Path) -> None:
        """Writes the weights, rounded to float16."""
        arrays = {name: value.half().cpu().numpy() for name, value in self.state_dict().items()}
        with path.open("wb") as file:
            np.savez(file, **arrays)


def normalise(images: Pixels) -> Tensor:
    """Pixels as float32 in [-1, 1].

    Raises ValueError unless the images are uint8 of shape (N, 1, 8, 8).
    """
    if images.dtype != torch.uint8 or images.shape[1:] != (1, 8, 8):
        found = f"{images.dtype} of shape {tuple(images.shape)}"
        raise ValueError(f"images must be uint8 (N, 1, 8, 8); got {found}")
    return images.float() / 127.5 - 1


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
