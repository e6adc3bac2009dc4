"""An untrained convolutional network: features of images for which there is no trained one.

Its distances order noise and blur correctly and respond weakly to missing classes; a trained
extractor is better where there is one. The weights are drawn from a fixed seed.
"""

import hashlib
import math

import torch
from torch import Tensor, nn

from vamf.rng import generator
from vamf.typing import Features, Pixels

NAME = "randconv64_v1"
DIM = 64

LAYERS = ((3, 32, 1), (32, 64, 2), (64, 64, 2), (64, DIM, 2))
"""(channels in, channels out, stride) of each 3x3 convolution; a ReLU follows each."""


class RandomConvolutions(nn.Module):
    """Four convolutions with He-normal weights (arXiv 1502.01852), no biases, and an average."""

    def __init__(self) -> None:
        super().__init__()
        g = generator(NAME)
        for index, (i, o, _) in enumerate(LAYERS):
            weight = torch.randn(o, i, 3, 3, generator=g) * math.sqrt(2 / (9 * i))
            self.register_buffer(f"weight{index}", weight)

    def forward(self, images: Pixels) -> Features:
        """Features, (N, 64) and not negative, of images (N, 3, H, W) of any size."""
        x = images.float() / 127.5 - 1
        for index, (_, _, stride) in enumerate(LAYERS):
            weight: Tensor = self.get_buffer(f"weight{index}")
            x = torch.conv2d(x, weight, stride=stride, padding=1).relu()
        return x.mean(dim=(2, 3))

    def sha256(self) -> str:
        """SHA-256 of the weights; the same wherever torch draws the same numbers."""
        digest = hashlib.sha256()
        for weight in self.buffers():
            digest.update(weight.cpu().numpy().tobytes())
        return digest.hexdigest()
