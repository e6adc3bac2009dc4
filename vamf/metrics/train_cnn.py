"""Trains a shipped classifier: ``python -m vamf.metrics.train_cnn NAME --root DATA --out PATH``.

Results differ between machines in their last bits; the shipped file defines the metric.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vamf.data.dataset import ImageSet
from vamf.data.digits import Digits
from vamf.data.torchvision_sets import CIFAR10, MNIST
from vamf.metrics.cnn import CNN, DIM, SHIPPED, file_sha256, normalise
from vamf.rng import generator

SEED = 0
BATCH = 128
RATE = 4e-3


@dataclass(frozen=True)
class Recipe:
    """How one classifier is trained."""

    data: Callable[[Path], Digits | CIFAR10 | MNIST]
    """Returns the data set in a folder."""
    steps: int
    shift: int
    """Largest shift of an image, in pixels."""
    mirror: bool = False
    """Whether half of the images are mirrored."""


RECIPES = {
    "digits_cnn64_v1": Recipe(lambda _: Digits(), steps=800, shift=1),
    "mnist_cnn64_v1": Recipe(lambda root: MNIST(root=root), steps=4000, shift=2),
    "cifar10_cnn64_v1": Recipe(lambda root: CIFAR10(root=root), steps=12_000, shift=4, mirror=True),
}


def main() -> None:
    """Trains on the train split, writes the weights, prints accuracy on the test split and hash."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the data")
    parser.add_argument("--out", type=Path, required=True, help="the npz file to write")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    name, out, device = options.name, options.out, options.device
    data = RECIPES[name].data(options.root)
    export(name, train(name, data.load("train").to(device), device)).save(out)
    right = accuracy(CNN.load(name, out), data.load("test"))
    print(f"test accuracy {right:.4f}, sha256 {file_sha256(out)}")


def train(name: str, data: ImageSet, device: torch.device) -> nn.Sequential:
    """A network with batch normalisation, trained with AdamW on a one-cycle schedule."""
    torch.manual_seed(SEED)
    network, recipe = unfolded(name).to(device), RECIPES[name]
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=recipe.steps)
    for step in range(recipe.steps):
        chosen = data.positions(step, BATCH, SEED)
        g = generator("augment", SEED, step)
        images = augment(normalise(data.images[chosen]), recipe, g)
        loss = functional.cross_entropy(network(images), data.labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def unfolded(name: str) -> nn.Sequential:
    """The network during training: convolution, batch normalisation and ReLU, then the head."""
    layers: list[nn.Module] = []
    channels = SHIPPED[name].shape[0]
    for o, kernel, stride in SHIPPED[name].layers:
        convolution = nn.Conv2d(channels, o, kernel, stride=stride, padding=kernel // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(o), nn.ReLU()]
        channels = o
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(DIM, 10))


def augment(images: Tensor, recipe: Recipe, random: torch.Generator) -> Tensor:
    """Shifts images, scales them by up to a tenth and may mirror them; the border is black."""
    n, size = len(images), images.shape[3]
    scale = 1 + 0.1 * (2 * torch.rand(n, 1, 1, generator=random) - 1)
    # Coordinates in [-1, 1] span the image.
    shift = 2 * recipe.shift / size * (2 * torch.rand(n, 2, 1, generator=random) - 1)
    matrix = scale * torch.eye(2)
    if recipe.mirror:
        matrix[:, 0] *= 1 - 2 * torch.randint(2, (n, 1), generator=random)
    affine = torch.cat([matrix, shift], dim=2).to(images.device)
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    return functional.grid_sample(images + 1, grid, align_corners=False) - 1


def export(name: str, network: nn.Sequential) -> CNN:
    """Folds each batch normalisation into the convolution before it."""
    layers, folded = list(network), CNN(name)
    for k in range(len(folded.convolutions)):
        convolution, normalisation = layers[3 * k], layers[3 * k + 1]
        assert isinstance(convolution, nn.Conv2d) and isinstance(normalisation, nn.BatchNorm2d)
        folded.convolutions[k] = fuse_conv_bn_eval(convolution, normalisation)
    head = layers[-1]
    assert isinstance(head, nn.Linear)
    folded.head = head
    return folded


def accuracy(network: CNN, data: ImageSet) -> float:
    """The share of images that the network classifies correctly."""
    predicted = [network.head(network(part)).argmax(1) for part in data.images.split(1000)]
    return float((torch.cat(predicted) == data.labels).float().mean())


if __name__ == "__main__":
    main()
