"""MNIST, CIFAR-10 and folders of images as they lie on disk, made of a few random pixels."""

import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REAL = Path(os.environ.get("VAMF_TEST_DATA", "absent"))
"""A folder with mnist.npz and cifar10-jpeg.tar.xz, for the tests of real images."""

real = pytest.mark.skipif(not REAL.is_dir(), reason="VAMF_TEST_DATA names no folder of real images")


def write_mnist(root: Path, images: np.ndarray, labels: np.ndarray, split: str) -> None:
    """Images (n, 28, 28) uint8 as the IDX files that torchvision reads; split train or t10k."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">4i", 0x803, len(images), 28, 28)
    (folder / f"{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
    header = struct.pack(">2i", 0x801, len(labels))
    (folder / f"{split}-labels-idx1-ubyte").write_bytes(header + labels.astype("u1").tobytes())


def write_real_mnist(root: Path) -> None:
    """All of MNIST, out of ``REAL``."""
    with np.load(REAL / "mnist.npz") as stored:
        for split, end in (("train", "train"), ("t10k", "test")):
            write_mnist(root, stored[f"x_{end}"], stored[f"y_{end}"], split)


def unpack_real_cifar10(root: Path) -> Path:
    """The folder of CIFAR-10's 10,000 test images, with a subfolder for each class."""
    with tarfile.open(REAL / "cifar10-jpeg.tar.xz") as archive:
        members = [m for m in archive if m.name.startswith("cifar10/test/")]
        archive.extractall(root, members, filter="data")
    return root / "cifar10" / "test"


def write_cifar10(root: Path, images: np.ndarray, labels: np.ndarray, split: str) -> None:
    """Images (n, 32, 32, 3) uint8 as the pickles that torchvision reads; split train or test."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    names = ["test_batch"] if split == "test" else [f"data_batch_{k}" for k in range(1, 6)]
    parts = zip(
        names, np.array_split(images, len(names)), np.array_split(labels, len(names)), strict=True
    )
    for name, part, those in parts:
        rows = part.transpose(0, 3, 1, 2).reshape(len(part), -1)
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": those.tolist()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [*"abcdefghij"]}))


def trust_cifar10(patch: pytest.MonkeyPatch) -> None:
    """Makes torchvision read pickles that are not, byte for byte, the published ones."""
    from torchvision.datasets import cifar

    patch.setattr(cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())


def write_tiny(root: Path, count: int = 64) -> None:
    """Both data sets, of random pixels."""
    random = np.random.RandomState(0)
    for split in ("train", "t10k"):
        images = random.randint(0, 256, (count, 28, 28)).astype("u1")
        write_mnist(root, images, np.arange(count) % 10, split)
    for split in ("train", "test"):
        images = random.randint(0, 256, (count, 32, 32, 3)).astype("u1")
        write_cifar10(root, images, np.arange(count) % 10, split)


def write_images(folder: Path, images: np.ndarray, ending: str = ".png") -> list[Path]:
    """Images (n, H, W, 3) or (n, H, W) uint8 as files that sort in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:06d}{ending}" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths
