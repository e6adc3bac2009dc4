"""MNIST and CIFAR-10 as torchvision keeps them."""

import gzip
import os
import struct

import numpy as np
import pytest
import torch
from helpers.pictures import (
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
from vamf.data.torchvision_sets import CIFAR10, MNIST


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
    with pytest.raises(ValueError, match=r"as torchvision keeps it; got: .* is not there; ") as e:
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


IMAGES, LABELS = "MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/train-labels-idx1-ubyte"
BATCH = "cifar-10-batches-py/data_batch_1"


def error_line(data, root, **settings):
    """What is wrong and what helps, of the one line that a data set is refused with."""
    with pytest.raises(ValueError, match="as torchvision keeps it; got: ") as caught:
        data(root=root, **settings).load("train")
    line = str(caught.value)
    assert line.isprintable()
    return line.partition("; got: ")[2]


@pytest.mark.parametrize(("data", "name"), [(MNIST, IMAGES), (MNIST, LABELS), (CIFAR10, BATCH)])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "it is empty"),
        (b"\n<!DOCTYPE html><html>404", "it seems to be an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "it is a Git LFS pointer"),
        (gzip.compress(b"x", mtime=0), "it is compressed by gzip"),
        (b"PK\3\4", "it is a zip archive"),
    ],
)
def test_what_lies_in_a_files_place_is_reported(root, data, name, content, kind):
    (root / name).write_bytes(content)
    line = error_line(data, root)
    assert line.startswith(f"{root / name}: {kind}")
    assert line.endswith("; delete it, and data.download=true fetches it")


@pytest.mark.parametrize(
    ("name", "head", "more", "reason"),
    [
        (IMAGES, (0x803, 64, 28, 28), 99, "it must have 50192 bytes by its header; got 115"),
        (LABELS, (0x801, 64), 65, "it must have 72 bytes by its header; got 73"),
        (LABELS, (0x803, 64, 28, 28), 0, "it does not begin as an IDX file of labels does"),
        (IMAGES, (7,), 0, "it does not begin as an IDX file of images does"),
        (IMAGES, (0x803, 64), 0, "its images must be 28x28; got 0x0"),
    ],
)
def test_damaged_mnist_is_reported(root, name, head, more, reason):
    (root / name).write_bytes(struct.pack(f">{len(head)}I", *head) + bytes(more))
    assert error_line(MNIST, root).startswith(f"{root / name}: {reason}; delete it")


def test_mnist_of_another_size_is_not_taken(root):
    """torchvision would read it."""
    head = struct.pack(">4I", 0x803, 64, 32, 32)
    (root / IMAGES).write_bytes(head + bytes(64 * 32 * 32))
    with pytest.raises(ValueError, match=r"must be \(1, 28, 28\).*; got 64 of \(1, 32, 32\)"):
        MNIST(root=root).load("train")
    (root / IMAGES).write_bytes(struct.pack(">4I", 0x803, 63, 28, 28) + bytes(63 * 28 * 28))
    with pytest.raises(ValueError, match=r"labels as many; got 63 of .*, and 64 labels"):
        MNIST(root=root).load("train")


def test_damaged_cifar10_is_reported(root):
    (root / BATCH).write_bytes(b"\x80" + bytes(99))
    reason = "it is cut short: 10,000 images take more than 30720000 bytes; got 100"
    assert error_line(CIFAR10, root).startswith(f"{root / BATCH}: {reason}; delete it")
    with (root / BATCH).open("wb") as file:
        file.write(b"\x80")
        file.truncate(31_035_704)  # the published size
    assert "must have the published MD5 c99cafc152244af753f735de768cd75f" in error_line(
        CIFAR10, root
    )


@pytest.mark.parametrize(("data", "name"), [(MNIST, LABELS), (CIFAR10, BATCH)])
def test_one_file_that_is_missing_is_reported(root, data, name):
    (root / name).unlink()
    count = "3 of 4" if data is MNIST else "6 of 7"
    wanted = f"{root / name} is not there, though {count} files are; data.download=true fetches it"
    assert error_line(data, root) == wanted


@pytest.mark.parametrize(
    ("data", "folder", "moved", "remedy"),
    [
        (MNIST, "MNIST", "deep/MNIST", "set data.root={root}/deep"),
        (CIFAR10, "cifar-10-batches-py", "a/b/cifar-10-batches-py", "set data.root={root}/a/b"),
        (MNIST, "MNIST/raw", "MNIST", "move it to {root}/MNIST/raw/train-images-idx3-ubyte"),
        (MNIST, "MNIST/raw", "mnist/raw", "move it to {root}/MNIST/raw/train-images-idx3-ubyte"),
        (CIFAR10, "cifar-10-batches-py", "a", "move it to {root}/cifar-10-batches-py/data_batch_1"),
    ],
)
def test_files_in_another_folder_are_found(tmp_path, data, folder, moved, remedy):
    root = tmp_path / "data"
    write_tiny(tmp_path / "made")
    (root / moved).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "made" / folder).rename(root / moved)
    first = "train-images-idx3-ubyte" if data is MNIST else "data_batch_1"
    line = error_line(data, root)
    assert line.startswith(f"{root / moved}") and f"/{first} lies " in line
    assert line.endswith(f"{remedy.format(root=root)}; or data.download=true fetches it")


@pytest.mark.parametrize("too_deep", ["MNIST", "MNIST/raw", "other"])
def test_a_root_that_is_another_is_reported(root, too_deep):
    line = error_line(MNIST, root / too_deep)
    assert f"{root / IMAGES} lies " in line
    assert "; or data.download=true fetches it" in line


def test_mnist_under_other_names_is_found(root):
    path, dotted = root / IMAGES, root / "MNIST" / "raw" / "train-images.idx3-ubyte"
    path.rename(dotted)
    assert error_line(MNIST, root).startswith(f"{dotted} has another name; rename it to {path}; ")
    packed = dotted.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(dotted.read_bytes()))
    dotted.unlink()
    assert error_line(MNIST, root).startswith(
        f"{packed} is not unpacked; unpack it in {path.parent}; "
    )
    packed.write_bytes(b"<html>")
    assert f"{packed} is no gzip file: it seems to be an HTML page" in error_line(MNIST, root)
    packed.write_bytes(b"?")
    assert f"{packed} is no gzip file: it seems to be damaged; delete it" in error_line(MNIST, root)


def test_an_archive_that_is_not_unpacked_is_found(tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(gzip.compress(b"x"))
    assert error_line(CIFAR10, tmp_path) == (
        f"{archive} is not unpacked; unpack it in {tmp_path}; or data.download=true fetches it"
    )
    archive.write_bytes(b"")
    assert error_line(CIFAR10, tmp_path).startswith(
        f"{archive} is no gzip file: it is empty; delete it"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("closed", [LABELS, "MNIST/raw"])
def test_files_that_may_not_be_read_are_reported(root, closed):
    (root / closed).chmod(0)
    try:
        assert "Permission denied; it must be " in error_line(MNIST, root)
    finally:
        (root / closed).chmod(0o700)


def test_a_folder_in_a_files_place_is_reported(root):
    """Some archives hold each file in a folder of its name."""
    (root / LABELS).unlink()
    (root / LABELS).mkdir()
    assert error_line(MNIST, root) == f"{root / LABELS}: Is a directory; it must be a readable file"


def test_a_download_that_fails_is_reported(root, monkeypatch):
    from urllib.error import URLError

    def offline(*arguments, **more):
        raise URLError("no route\nto host")

    for module in ("mnist", "cifar"):
        place = f"torchvision.datasets.{module}.download_and_extract_archive"
        monkeypatch.setattr(place, offline)
    (root / LABELS).unlink()
    for data in (MNIST, CIFAR10):
        line = error_line(data, root, download=True)
        assert "; it could not be fetched: " in line and "no route to host" in line
    write_tiny(root)
    (root / IMAGES).write_bytes(b"")  # torchvision tries to fetch nothing that is there
    assert "it is empty; delete it, and data.download=true" in error_line(
        MNIST, root, download=True
    )


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
    from vamf.data.image_folder import ImageFolder

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
