"""Latents on disk: memory-mapped numpy arrays, and an index that describes them.

A folder holds ``index.json`` and, for each shard, ``moments-00000.npy``, (n, views, 2 C, H, W),
mean and log-variance of each image and of its mirror image, and ``rows-00000.npy``, their labels
and checksums. Reading one image from a mapped .npy file does not load or parse the others.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from vamf import commands, serialization
from vamf.files import write_whole

INDEX = "index.json"
REMEDY = f"`{commands.shown('encode')}` of the same images, into the same folder, makes it anew"


@dataclass(frozen=True, kw_only=True)
class Index:
    """The description of a folder of latents."""

    vae: str
    """The autoencoder's name, or folder, when the latents were made."""
    vae_sha256: str
    """SHA-256 of its weights."""
    scaling: float
    """Factor by which latents are multiplied, from the autoencoder's configuration."""
    shape: tuple[int, int, int]
    """Shape of a latent: (channels, height, width)."""
    resolution: int
    """Height and width of the images that were encoded."""
    classes: int
    """Number of classes, or 0."""
    count: int
    """Number of images."""
    shard: int
    """Images in a shard; the last shard may have fewer."""
    mirrored: bool
    """Whether each image's mirror image was encoded too."""
    dtype: Literal["float32", "float16"]
    """Type of the stored moments."""
    images: str
    """A hash of the images' names in order, and of the way of cutting."""

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
        """The type of a row: a label, and a checksum for each view."""
        return np.dtype([("label", "<i8"), ("check", "<u4", (1 + self.mirrored,))])

    @classmethod
    def load(cls, root: Path) -> Self:
        """Reads a folder's index; ValueError if it is missing or not an index."""
        path = root / INDEX
        if not path.is_file():
            raise ValueError(
                f"a folder of latents must hold {INDEX}, which `{commands.shown('encode')}` "
                f"writes; got none in {root}"
            )
        try:
            return serialization.from_dict(cls, json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} must be an index of latents; got {reason}") from None

    def save(self, root: Path) -> None:
        """Writes JSON atomically."""
        write_whole(root / INDEX, json.dumps(serialization.to_dict(self), indent=2) + "\n")


def _paths(root: Path, number: int) -> tuple[Path, Path]:
    return root / f"moments-{number:05d}.npy", root / f"rows-{number:05d}.npy"


def _checksum(view: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(view).data)


def write_shard(root: Path, index: Index, number: int, moments: Tensor, labels: Tensor) -> None:
    """Writes a shard atomically; moments are (images, views, 2 C, H, W)."""
    assert tuple(moments.shape) == index.moments(number)
    array = moments.cpu().numpy().astype(index.dtype)
    rows = np.empty(len(array), index.row())
    rows["label"] = labels.numpy()
    rows["check"] = [[_checksum(view) for view in image] for image in array]
    path, rows_path = _paths(root, number)
    write_whole(rows_path, lambda file: np.save(file, rows))
    # Last: its existence marks the shard as complete.
    write_whole(path, lambda file: np.save(file, array))


class Shards:
    """The moments and labels of a folder; creating it reads only labels and checksums."""

    def __init__(self, root: Path) -> None:
        """Raises ValueError, naming the first, if a shard is missing or differs from the index."""
        self.root, self.index = root, Index.load(root)
        shards = [_open(root, self.index, number) for number in self.index.shards]
        self._moments = [moments for moments, _ in shards]
        self.rows = np.concatenate([rows for _, rows in shards])
        self.labels = torch.from_numpy(self.rows["label"].copy())
        self._intact = np.zeros(self.rows["check"].shape, bool)

    def read(self, images: np.ndarray, views: np.ndarray) -> Tensor:
        """Means and log-variances, (n, 2 C, H, W), of views of images, both given by indices (n,).

        Raises ValueError if they are damaged; checksums are compared when a view is first read.
        """
        numbers, rows = np.divmod(images, self.index.shard)
        _, each, *shape = self.index.moments(0)
        found = np.empty((len(images), *shape), self.index.dtype)
        for number in np.unique(numbers):  # numpy's take releases the GIL
            here = numbers == number
            of_shard = self._moments[number].reshape(-1, *shape)
            found[here] = np.take(of_shard, rows[here] * each + views[here], axis=0)
        for k in np.flatnonzero(~self._intact[images, views]):
            if _checksum(found[k]) != self.rows["check"][images[k], views[k]]:
                path = _paths(self.root, numbers[k])[0]
                raise ValueError(
                    f"{path} is damaged: row {rows[k]} is not as it was written; {REMEDY}"
                )
        self._intact[images, views] = True
        return torch.from_numpy(found)


def _open(root: Path, index: Index, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A shard's moments, memory-mapped, and its rows."""
    path, rows_path = _paths(root, number)
    moments = _array(path, "r", np.dtype(index.dtype), index.moments(number))
    return moments, _array(rows_path, None, index.row(), (len(index.of(number)),))


def _array(
    path: Path, mode: Literal["r"] | None, dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"{path} is missing, of latents that {INDEX} declares; {REMEDY}")
    try:
        array = np.load(path, mmap_mode=mode)
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged: {reason}; {REMEDY}") from None
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"{path} must hold {dtype} of shape {shape}, as {INDEX} says; "
            f"got {array.dtype} of shape {array.shape}"
        )
    return array


def intact(root: Path, index: Index, number: int) -> bool:
    """Whether a shard exists and all of its checksums match."""
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
