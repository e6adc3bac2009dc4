"""Latents on disk: numpy arrays that are mapped into memory, and an index that says of what.

A folder holds ``index.json`` and, for each shard, ``moments-00000.npy``, (n, views, 2 C, H, W),
mean and log-variance of each image and of its mirror image, and ``rows-00000.npy``, their labels
and checksums. A row of a .npy file is a part of the mapped file: one image is read without loading,
or parsing, the others.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from vamf import values
from vamf.files import write_whole

INDEX = "index.json"
MEND = "`python -m jobs.encode` of the same images, into the same folder, makes it anew"


@dataclass(frozen=True, kw_only=True)
class Index:
    """What a folder of latents holds."""

    vae: str
    """The autoencoder's name, or folder, when the latents were made."""
    vae_sha256: str
    """Of its weights."""
    scaling: float
    """Factor of the latents, from the autoencoder's own configuration."""
    shape: tuple[int, int, int]
    """Of a latent: (channels, height, width)."""
    resolution: int
    """Height and width of the images that were encoded."""
    classes: int
    """Classes of the labels, or 0."""
    count: int
    """Images."""
    shard: int
    """Images in a shard; the last one has the rest."""
    mirrored: bool
    """Whether each image's mirror image was encoded too."""
    dtype: Literal["float32", "float16"]
    """Of the stored moments."""
    images: str
    """A hash of the images' names in order, and of how they were cut."""

    @property
    def shards(self) -> range:
        """The shards' numbers."""
        return range(-(-self.count // self.shard))

    def of(self, number: int) -> range:
        """The images in a shard."""
        return range(self.count)[number * self.shard : (number + 1) * self.shard]

    def moments(self, number: int) -> tuple[int, ...]:
        """The shape of a shard's moments."""
        channels, height, width = self.shape
        return (len(self.of(number)), 1 + self.mirrored, 2 * channels, height, width)

    def row(self) -> np.dtype:
        """A label, and a checksum for each view."""
        return np.dtype([("label", "<i8"), ("check", "<u4", (1 + self.mirrored,))])

    @classmethod
    def load(cls, root: Path) -> Self:
        """Reads a folder's index; ValueError if there is none, or it is none."""
        path = root / INDEX
        if not path.is_file():
            raise ValueError(
                f"a folder of latents must hold {INDEX}, which `python -m jobs.encode` writes; "
                f"got none in {root}"
            )
        try:
            return values.from_dict(cls, json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} must be an index of latents; got {reason}") from None

    def save(self, root: Path) -> None:
        """Writes JSON, whole or not at all."""
        write_whole(root / INDEX, json.dumps(values.to_dict(self), indent=2) + "\n")


def _places(root: Path, number: int) -> tuple[Path, Path]:
    return root / f"moments-{number:05d}.npy", root / f"rows-{number:05d}.npy"


def _checksum(view: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(view).data)


def write_shard(root: Path, index: Index, number: int, moments: Tensor, labels: Tensor) -> None:
    """Writes a shard, which is there once all of it is; moments (images, views, 2 C, H, W)."""
    assert tuple(moments.shape) == index.moments(number)
    array = moments.cpu().numpy().astype(index.dtype)
    rows = np.empty(len(array), index.row())
    rows["label"] = labels.numpy()
    rows["check"] = [[_checksum(view) for view in image] for image in array]
    path, beside = _places(root, number)
    write_whole(beside, lambda file: np.save(file, rows))
    write_whole(path, lambda file: np.save(file, array))  # last: it says that the shard is there


class Shards:
    """All moments and labels of a folder; nothing is read but labels and checksums."""

    def __init__(self, root: Path) -> None:
        """Raises ValueError, naming the first, if a shard is missing, or is not as declared."""
        self.root, self.index = root, Index.load(root)
        shards = [_open(root, self.index, number) for number in self.index.shards]
        self._moments = [moments for moments, _ in shards]
        self.rows = np.concatenate([rows for _, rows in shards])
        self.labels = torch.from_numpy(self.rows["label"].copy())
        self._intact = np.zeros(self.rows["check"].shape, bool)

    def read(self, images: np.ndarray, views: np.ndarray) -> Tensor:
        """Means and log-variances of views of images, both (n,): (n, 2 C, H, W).

        ValueError if they are not as they were written, which is seen when they are first read.
        """
        numbers, rows = np.divmod(images, self.index.shard)
        _, each, *shape = self.index.moments(0)
        found = np.empty((len(images), *shape), self.index.dtype)
        for number in np.unique(numbers):  # numpy's take lets other threads work
            here = numbers == number
            of_shard = self._moments[number].reshape(-1, *shape)
            found[here] = np.take(of_shard, rows[here] * each + views[here], axis=0)
        for k in np.flatnonzero(~self._intact[images, views]):
            if _checksum(found[k]) != self.rows["check"][images[k], views[k]]:
                path = _places(self.root, numbers[k])[0]
                raise ValueError(
                    f"{path} is damaged: row {rows[k]} is not as it was written; {MEND}"
                )
        self._intact[images, views] = True
        return torch.from_numpy(found)


def _open(root: Path, index: Index, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A shard's moments, mapped, and its rows."""
    path, beside = _places(root, number)
    moments = _array(path, "r", np.dtype(index.dtype), index.moments(number))
    return moments, _array(beside, None, index.row(), (len(index.of(number)),))


def _array(
    path: Path, mode: Literal["r"] | None, dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"{path} is missing, of latents that {INDEX} declares; {MEND}")
    try:
        array = np.load(path, mmap_mode=mode)
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged: {reason}; {MEND}") from None
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"{path} must hold {dtype} of shape {shape}, as {INDEX} says; "
            f"got {array.dtype} of shape {array.shape}"
        )
    return array


def intact(root: Path, index: Index, number: int) -> bool:
    """Whether a shard is there, and each of its rows is as it was written."""
    try:
        moments, rows = _open(root, index, number)
    except ValueError:
        return False
    checks = rows["check"]
    return all(
        _checksum(view) == check
        for image, of_image in zip(moments, checks, strict=True)
        for view, check in zip(image, of_image, strict=True)
    )
