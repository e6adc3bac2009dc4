"""MNIST and CIFAR-10 as torchvision keeps them."""

import numpy as np
import pytest
import torch
from pictures import (
    REAL,
    real,
    trust_cifar10,
    unpack_real_cifar10,
    write_cifar10,
    write_mnist,
    write_real_mnist,
    write_tiny,
)
from PIL import Image

from vamf.data.dataset import check_labels
from vamf.data.downloads import CIFAR10, MNIST


@pytest.fixture
def root(tmp_path):
    write_tiny(tmp_path)
    return tmp_path


def test_mnist(root):
    data = MNIST(root=root)
    train, test = data.load("train"), data.load("test")
    assert len(train) == len(test) == 64 and train.shape == (1, 28, 28)
    random = np.random.RandomState(0).randint(0, 256, (64, 28, 28)).astype("u1")
    assert torch.equal(train.images[:, 0], torch.from_numpy(random))
    assert train.labels.tolist() == [i % 10 for i in range(64)]
    assert data.load("train") is train  # read once


def test_cifar10(root, monkeypatch):
    trust_cifar10(monkeypatch)
    images = np.random.RandomState(1).randint(0, 256, (50, 32, 32, 3)).astype("u1")
    write_cifar10(root, images, np.arange(50) % 10, "train")
    train = CIFAR10(root=root).load("train")
    assert torch.equal(train.images, torch.from_numpy(images.transpose(0, 3, 1, 2)))
    assert train.labels.tolist() == [i % 10 for i in range(50)]
    assert train.images.is_contiguous() and CIFAR10(root=root).load("test").shape == (3, 32, 32)


@pytest.mark.parametrize("data", [CIFAR10, MNIST])
def test_absent_data_are_one_line(data, tmp_path):
    with pytest.raises(ValueError, match=r"as torchvision keeps it; got: Dataset not found") as e:
        data(root=tmp_path).load("train")
    assert str(tmp_path) in str(e.value) and "data.download=true fetches it" in str(e.value)
    assert "\n" not in str(e.value)


def test_other_pickles_are_not_taken_for_cifar10(root):
    """torchvision knows the published files by their hashes."""
    with pytest.raises(ValueError, match=r"CIFAR-10 must lie in .*cifar-10-batches-py"):
        CIFAR10(root=root).load("train")


def test_labels_out_of_range_are_refused(tmp_path):
    write_mnist(tmp_path, np.zeros((3, 28, 28), "u1"), np.array([0, 12, 3]), "train")
    write_mnist(tmp_path, np.zeros((3, 28, 28), "u1"), np.array([0, 1, 3]), "t10k")
    with pytest.raises(ValueError, match=r"labels must lie in 0, ..., 9; got 0 to 12 in"):
        MNIST(root=tmp_path).load("train")
    with pytest.raises(ValueError, match=r"0, ..., 1; got -1 to 0"):
        check_labels(torch.tensor([-1, 0]), 2, "here")


@real
def test_real_mnist(tmp_path):
    write_real_mnist(tmp_path)
    with np.load(REAL / "mnist.npz") as stored:
        expected = torch.from_numpy(stored["x_test"])
    data = MNIST(root=tmp_path)
    assert len(data.load("train")) == 60_000
    assert torch.equal(data.load("test").images[:, 0], expected)
    assert data.load("train").labels.bincount().tolist()[:3] == [5923, 6742, 5958]


@real
@pytest.mark.slow
def test_real_cifar10_as_folder_and_as_pickles(tmp_path, monkeypatch):
    from vamf.data.folders import ImageFolder

    root = unpack_real_cifar10(tmp_path)
    folder = ImageFolder(root=root, size=32, crop="exact", classes=10).load("train")
    assert len(folder) == 10_000 and folder.labels.bincount().tolist() == [1000] * 10
    trust_cifar10(monkeypatch)
    array = folder.images.permute(0, 2, 3, 1).numpy()
    write_cifar10(tmp_path, array, folder.labels.numpy(), "test")
    write_cifar10(tmp_path, array[:5], folder.labels.numpy()[:5], "train")
    assert torch.equal(CIFAR10(root=tmp_path).load("test").images, folder.images)
    first = next(iter(sorted(root.rglob("*.jpg"))))
    assert np.array_equal(np.array(Image.open(first)), array[0])
