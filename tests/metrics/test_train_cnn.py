"""How the shipped classifiers were trained: it still learns, and shifts and scales as it says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy import stats

from vamf.data.digits import Digits
from vamf.metrics import train_cnn
from vamf.metrics.cnn import CNN, SHIPPED
from vamf.metrics.train_cnn import RECIPES, Recipe, accuracy, augment, export, train
from vamf.rng import generator

N, SIZE, WIDTH = 400, 49, 4.0
"""Images of one blob, a Gaussian of so many pixels' deviation, on black."""


def blobs(shift, mirror=False, at=0.0):
    """Centres (n, 2), x and y, in pixels from the middle, and widths (n, 2) of changed blobs."""
    axis = torch.arange(SIZE) - (SIZE - 1) / 2
    one = torch.exp(-((axis - at).square() + axis[:, None].square()) / (2 * WIDTH**2))
    recipe = Recipe(lambda _: Digits(), steps=0, shift=shift, mirror=mirror)
    images = (2 * one - 1).expand(N, 1, SIZE, SIZE)
    light = (augment(images, recipe, generator("blobs")) + 1).double()[:, 0]
    assert light.min() > -1e-6  # nothing is darker than the border
    rows = torch.stack([light.sum(1), light.sum(2)], 1) / light.sum((1, 2))[:, None, None]
    centres = (rows * axis).sum(2)
    widths = (rows * (axis - centres[..., None]).square()).sum(2).sqrt()
    return centres, widths


def test_images_are_shifted_and_scaled_uniformly():
    """Up to 3 pixels along each axis, by factors from .9 to 1.1; interpolation costs 1 %."""
    centres, widths = blobs(3)
    assert (widths[:, 0] / widths[:, 1] - 1).abs().max() < 0.01  # all axes alike
    scale = WIDTH / widths.mean(1)
    assert stats.kstest(scale, stats.uniform(0.9, 0.2).cdf).pvalue > 1e-3
    for offset in (centres * scale[:, None]).T:
        assert stats.kstest(offset, stats.uniform(-3, 6).cdf).pvalue > 1e-3
    together = torch.corrcoef(torch.cat([centres.T, scale[None]])) - torch.eye(3)
    assert together.abs().max() < 5 * N**-0.5  # independent


def test_half_of_the_images_are_mirrored_if_any_are():
    for mirror in (False, True):
        centres, _ = blobs(0, mirror, at=8.0)
        assert centres[:, 1].abs().max() < 0.01
        assert (centres[:, 0].abs() > 7).all()
        left = int((centres[:, 0] < 0).sum())
        assert stats.binomtest(left, N).pvalue > 1e-3 if mirror else left == 0


def test_a_short_training_learns_the_digits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Three of four test images are right after 30 steps, also once the weights are rounded."""
    name = "digits_cnn64_v1"
    monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], steps=30))
    monkeypatch.setattr(train_cnn, "BATCH", 32)
    with torch.random.fork_rng():
        made = export(name, train(name, Digits().load("train"), torch.device("cpu")))
    made.save(tmp_path / "weights.npz")
    for classifier in (made, CNN.load(name, tmp_path / "weights.npz")):
        assert accuracy(classifier, Digits().load("test")) > 0.75


@pytest.mark.parametrize("name", RECIPES)
def test_a_classifier_is_trained_on_images_of_its_own_shape(name: str, tmp_path: Path):
    data = RECIPES[name].data(tmp_path)
    assert data.shape == SHIPPED[name].shape and data.classes == 10
    assert getattr(data, "root", tmp_path) == tmp_path
