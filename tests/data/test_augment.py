"""EDM's augmentation: the transformations, their conditioning, and independence of the batch."""

import math

import pytest
import torch

from vamf.data.augment import Augmentation
from vamf.data.resample import SYM6
from vamf.rng import generator

ALL = Augmentation(p=1.0, yflip=True, rotate=True)
COLUMNS = ("mirror", "xflip", "yflip", "scale", "angle", "stretch", "axis", "x", "y")


def smooth(n=3, channels=3, size=32):
    """Images without detail near a pixel's size, so that interpolation shows no error."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    waves = [torch.cos(2.3 * x + k) + torch.sin(1.7 * y - k * x) for k in range(n * channels)]
    return torch.stack(waves).reshape(n, channels, size, size) / 2


def strengths(n=3, **given):
    table = torch.zeros(n, len(COLUMNS))
    for name, value in given.items():
        table[:, COLUMNS.index(name)] = value
    return table


def test_the_filter_is_orthonormal_to_its_even_shifts():
    taps = torch.tensor(SYM6, dtype=torch.float64)
    assert taps.sum().item() == pytest.approx(math.sqrt(2), abs=1e-9)
    for shift in range(0, 12, 2):
        product = (taps[shift:] * taps[: len(taps) - shift]).sum().item()
        assert product == pytest.approx(float(shift == 0), abs=1e-9)


def test_an_image_that_is_not_moved_stays_as_it_is():
    images = torch.rand(4, 3, 32, 32, generator=generator("augment")) * 2 - 1
    torch.testing.assert_close(ALL(images, strengths(4)), images, rtol=0, atol=2e-5)  # float32
    assert not ALL.conditioning(strengths(4)).any()


@pytest.mark.parametrize(("strength", "axis"), [("xflip", 3), ("mirror", 3), ("yflip", 2)])
def test_flips(strength, axis):
    images = torch.rand(2, 1, 8, 12, generator=generator("flips"))
    moved = ALL(images, strengths(2, **{strength: 1.0}))
    torch.testing.assert_close(moved, images.flip(axis), rtol=0, atol=2e-5)


def test_flipped_twice_is_not_flipped():
    images = torch.rand(2, 1, 8, 8, generator=generator("flips"))
    moved = ALL(images, strengths(2, xflip=1.0, mirror=1.0))
    torch.testing.assert_close(moved, images, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("x", "y"), [(1, 0), (0, -2), (3, 2)])
def test_a_shift_by_whole_pixels_is_exact_and_mirrors_the_border(x, y):
    """A strength of 1 is an eighth of the width, here 4 pixels; borders are not doubled."""
    images = torch.rand(2, 3, 32, 32, generator=generator("shift"))
    moved = ALL(images, strengths(2, x=x / 4, y=y / 4))
    padded = torch.nn.functional.pad(images, (8, 8, 8, 8), mode="reflect")
    expected = padded[:, :, 8 - y : 40 - y, 8 - x : 40 - x]
    torch.testing.assert_close(moved, expected, rtol=0, atol=5e-5)


def test_a_quarter_turn_and_a_scaling():
    """The filter is not quite symmetric: what is turned goes back by another one than it came."""
    images = smooth()
    turned = ALL(images, strengths(angle=math.pi / 2))
    torch.testing.assert_close(turned, images.rot90(1, (2, 3)), rtol=0, atol=0.05)
    assert (turned - images.rot90(-1, (2, 3))).abs().max() > 0.5
    larger = ALL(images, strengths(scale=5.0))  # 2^(0.2 * 5): twice as large
    inner = images[:, :, 8:24, 8:24]  # what fills the image then
    expected = torch.nn.functional.interpolate(inner, scale_factor=2, mode="bicubic")
    inside = (..., slice(4, 28), slice(4, 28))
    torch.testing.assert_close(larger[inside], expected[inside], rtol=0, atol=0.05)


def test_stretching_keeps_the_area_and_follows_its_axis():
    images = smooth()
    along = ALL(images, strengths(stretch=1.0))
    across = ALL(images.transpose(2, 3), strengths(stretch=1.0, axis=math.pi / 2))
    torch.testing.assert_close(along, across.transpose(2, 3), rtol=0, atol=0.05)
    wide = ALL(images, strengths(stretch=1.0))[:, :, 16, :]
    assert (wide - images[:, :, 16, :]).abs().max() > 0.01


def test_images_do_not_depend_on_their_neighbours():
    images = torch.rand(6, 3, 16, 16, generator=generator("alone"))
    draws = ALL.draw(6, generator("alone"))
    alone = torch.cat([ALL(images[i : i + 1], draws[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(alone, ALL(images, draws), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("rule", "dim"),
    [
        (Augmentation(), 6),  # py-meanflow's
        (Augmentation(yflip=True, rotate=True), 9),  # EDM's
    ],
)
def test_the_conditioning_describes_the_draws(rule, dim):
    """Probabilities within 5 deviations of 20,000 draws; half of all images are flipped."""
    n = 20_000
    draws = rule.draw(n, generator("told", dim))
    conditioning = rule.conditioning(draws)
    assert conditioning.shape == (n, dim) == (n, rule.dim)
    happens = {name: (draws[:, k] != 0).float().mean().item() for k, name in enumerate(COLUMNS)}
    expected = {"mirror": 0, "xflip": 0.5, "scale": 0.12, "stretch": 0.12, "x": 0.12, "y": 0.12}
    expected |= {"yflip": 0.06, "angle": 0.12} if dim == 9 else {"yflip": 0, "angle": 0}
    for name, share in expected.items():
        assert abs(happens[name] - share) <= 5 * (0.25 / n) ** 0.5, name
    assert torch.equal(draws[:, 7] != 0, draws[:, 8] != 0)
    assert torch.equal(conditioning[:, 0], draws[:, 1]) and torch.equal(
        conditioning[:, -1], draws[:, 8]
    )


def test_draws_are_those_of_the_seed():
    first, again = (ALL.draw(8, generator("seed", 1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, ALL.draw(8, generator("seed", 2)))


def test_a_mirrored_image_is_not_in_the_conditioning():
    draws = Augmentation(mirror=True).draw(1000, generator("mirror"))
    assert 400 < draws[:, 0].sum() < 600
    unmirrored = draws.clone()
    unmirrored[:, 0] = 0
    assert torch.equal(ALL.conditioning(draws), ALL.conditioning(unmirrored))


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_no_probability_is_refused(p):
    with pytest.raises(ValueError, match=r"augment.p must lie in \[0, 1\]"):
        Augmentation(p=p)
