"""The order of data is a function of (seed, step), and an epoch holds each image once."""

import pytest
import torch

from vamf.data.dataset import Generated, ImageSet, to_float
from vamf.data.digits import Digits
from vamf.data.toys import eight_gaussians
from vamf.rng import generator

CPU = torch.device("cpu")
N = 10


@pytest.fixture
def numbered():
    """Images that show their own index."""
    images = torch.arange(N, dtype=torch.uint8).reshape(N, 1, 1, 1).expand(N, 1, 2, 2)
    return ImageSet(images.contiguous(), torch.arange(N))


def test_generated_batches_are_keyed_by_seed_and_step():
    data = Generated(eight_gaussians, (2,))
    x = data.batch(3, 16, 0, CPU)
    assert x.shape == (16, *data.shape)
    assert torch.equal(x, Generated(eight_gaussians, (2,)).batch(3, 16, 0, CPU))
    assert not torch.equal(x, data.batch(4, 16, 0, CPU))
    assert not torch.equal(x, data.batch(3, 16, 1, CPU))


@pytest.mark.parametrize("size", [1, 3, 4, 10, 25])
def test_stream_is_one_permutation_after_another(numbered, size):
    stream = torch.cat([numbered.positions(step, size, 7) for step in range(60)])
    epochs = stream[: len(stream) // N * N].reshape(-1, N)
    assert (epochs.sort(dim=1).values == torch.arange(N)).all()
    # The stream does not depend on the size of the batches that cut it.
    assert torch.equal(stream[:60], numbered.positions(0, 60, 7))
    assert len({tuple(epoch.tolist()) for epoch in epochs[:6]}) > 1


def test_order_needs_no_state(numbered):
    forward = [numbered.positions(step, 4, 0) for step in range(9)]
    fresh = ImageSet(numbered.images, numbered.labels)
    for step in reversed(range(9)):
        assert torch.equal(fresh.positions(step, 4, 0), forward[step])
    assert not torch.equal(numbered.positions(0, N, 1), numbered.positions(0, N, 0))


def test_batch_shows_the_images_at_the_positions_in_unit_range(numbered):
    x = numbered.batch(1, 7, 0, CPU)
    shown = numbered.labels[numbered.positions(1, 7, 0)]
    assert x.dtype == torch.float32 and x.shape == (7, *numbered.shape)
    assert torch.equal(x[:, 0, 0, 0], shown.float() / 127.5 - 1)
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


@pytest.mark.parametrize("size", [1, 4, 25])
def test_labels_are_those_of_the_batchs_images(numbered, size):
    for step in range(5):
        shown = (numbered.batch(step, size, 3, CPU)[:, 0, 0, 0] + 1) * 127.5
        assert torch.equal(numbered.labels_of(step, size, 3, CPU), shown.round().long())


def test_draws_repeat_images_and_depend_on_the_generator_only(numbered):
    x = numbered.draw(1000, generator("draw"))
    assert torch.equal(x, numbered.to("cpu").draw(1000, generator("draw")))
    counts = x[:, 0, 0, 0].unique(return_counts=True)[1]
    # Binomial(1000, 1/10): deviation 9.5.
    assert len(counts) == N and (counts - 100).abs().max() < 48


def test_moving_keeps_the_data_and_leaves_the_original(numbered):
    moved = numbered.to("meta")
    assert moved.images.is_meta and moved.labels.is_meta and not numbered.images.is_meta


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_below_one_are_refused(numbered, size):
    toy = Generated(eight_gaussians, (2,))
    for data in (numbered, toy):
        with pytest.raises(ValueError, match=f"must be at least 1; got {size}"):
            data.batch(0, size, 0, CPU)
        with pytest.raises(ValueError, match=f"n must be at least 1; got {size}"):
            data.draw(size, generator(0))


def test_wrong_images_are_refused():
    with pytest.raises(ValueError, match=r"images must be uint8 .* got torch.float32"):
        ImageSet(torch.zeros(2, 1, 8, 8), torch.zeros(2).long())
    with pytest.raises(ValueError, match="labels must be as many as images; got 3 and 2"):
        ImageSet(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(3).long())


def test_digits_splits_are_disjoint_and_complete():
    from sklearn.datasets import load_digits

    train, test = Digits().load("train"), Digits().load("test")
    assert (len(train), len(test), train.shape) == (1347, 450, (1, 8, 8))
    levels = torch.from_numpy(load_digits().data)
    shown = torch.cat([train.images, test.images]).flatten(1).double() * 16 / 255
    assert sorted(shown.round().tolist()) == sorted(levels.tolist())
    assert train.images.max() == 255 and train.labels.bincount().min() > 100
    assert len(train.labels.bincount()) == Digits.classes == test.labels.max() + 1
    with pytest.raises(ValueError, match="split must be 'train' or 'test'; got 'val'"):
        Digits().load("val")


def test_keys_name_streams():
    def numbers(*key):
        return tuple(torch.rand(2, generator=generator(*key)).tolist())

    keys = [(0, 1), (1, 0), ("0", 1), (0, "1"), (0,), ("0, 1",), ("a", "b"), ("ab",), (-1,)]
    assert len({numbers(*key) for key in keys}) == len(keys)
    assert numbers("a", 3) == numbers("a", 3)
    # A golden value: streams must not change between versions or machines.
    assert generator("data", 0, 0).initial_seed() == 3200106048001402680
    with pytest.raises(ValueError, match="key must have at least 1 part; got 0"):
        generator()
