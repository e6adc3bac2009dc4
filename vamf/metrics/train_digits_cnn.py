"""Trains the digits network: ``python -m vamf.metrics.train_digits_cnn --out PATH``.

Not bit-stable between machines: the file that it once wrote is shipped and defines the metric.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vamf.data.images import Digits
from vamf.metrics.digits_cnn import DIM, LAYERS, DigitsCNN, file_sha256, normalise
from vamf.random import generator

SEED = 0
STEPS = 800
BATCH = 128
RATE = 4e-3


def main() -> None:
    """Trains on the train split, writes the weights, prints accuracy on the test split and hash."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the npz file to write")
    out = parser.parse_args().out
    export(train()).save(out)
    print(f"test accuracy {accuracy(DigitsCNN.load(out)):.4f}, sha256 {file_sha256(out)}")


def train() -> nn.Sequential:
    """A network with batch normalisation, trained with AdamW on a one-cycle schedule."""
    torch.manual_seed(SEED)
    data, network = Digits().load("train"), unfolded()
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=STEPS)
    for step in range(STEPS):
        chosen = data.positions(step, BATCH, SEED)
        images = augment(normalise(data.images[chosen]), generator("augment", SEED, step))
        loss = functional.cross_entropy(network(images), data.labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def unfolded() -> nn.Sequential:
    """The network as it is trained: convolution, batch normalisation, ReLU, and the head."""
    layers: list[nn.Module] = []
    for i, o, kernel, stride in LAYERS:
        convolution = nn.Conv2d(i, o, kernel, stride=stride, padding=kernel // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(DIM, 10))


def augment(images: Tensor, random: torch.Generator) -> Tensor:
    """Shifts each image by up to a pixel and scales it by up to a tenth; outside is background."""
    n = len(images)
    scale = 1 + 0.1 * (2 * torch.rand(n, 1, 1, generator=random) - 1)
    # A pixel is a quarter of the coordinates' range [-1, 1] at eight pixels.
    shift = 0.25 * (2 * torch.rand(n, 2, 1, generator=random) - 1)
    affine = torch.cat([scale * torch.eye(2), shift], dim=2)
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    return functional.grid_sample(images + 1, grid, align_corners=False) - 1


def export(network: nn.Sequential) -> DigitsCNN:
    """Folds each batch normalisation into the convolution before it."""
    layers, folded = list(network), DigitsCNN()
    for k in range(len(LAYERS)):
        convolution, normalisation = layers[3 * k], layers[3 * k + 1]
        assert isinstance(convolution, nn.Conv2d) and isinstance(normalisation, nn.BatchNorm2d)
        folded.convolutions[k] = fuse_conv_bn_eval(convolution, normalisation)
    head = layers[-1]
    assert isinstance(head, nn.Linear)
    folded.head = head
    return folded


def accuracy(network: DigitsCNN) -> float:
    """The share of the 450 test images that the network names rightly."""
    data = Digits().load("test")
    return float((network.head(network(data.images)).argmax(1) == data.labels).float().mean())


if __name__ == "__main__":
    main()
