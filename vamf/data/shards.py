"""Arrays in shards on disk: memory-mapped numpy files, and an index that describes them.

A folder holds an index and, for each shard, ``NAME-00000.npy``, (n, views, ...), the views of each
of its samples, and ``rows-00000.npy``, their labels and checksums. Reading one sample from a mapped
.npy file does not load or parse the others. The views of a latent are the moments, mean and
log-variance, of an image and of its mirror image.
"""

import json
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, Literal, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from vamf import commands, serialization
from vamf.files import write_whole

INDEX = "index.json"


class ShardIndex(ABC):
    """The description of a folder of shards; a subclass is a frozen dataclass, written as JSON."""

    FILE: ClassVar[str]
    """The index's file name."""
    ARRAYS: ClassVar[str]
    """The first part of the arrays' file names."""
    WHAT: ClassVar[str]
    """What the folder holds, in messages."""
    MAKER: ClassVar[str]
    """The command that writes it."""
    REMEDY: ClassVar[str]
    """What to do about a damaged shard."""
    FREE: ClassVar[tuple[str, ...]]
    """Fields that may differ when the making of a folder is resumed."""

    count: int
    """Number of samples."""
    shard: int
    """Samples in a shard; the last shard may have fewer."""
    dtype: Literal["float32", "float16"]
    """Type of the stored numbers."""

    @property
    @abstractmethod
    def views(self) -> int:
        """The number of arrays of a sample."""

    @property
    @abstractmethod
    def of_view(self) -> tuple[int, ...]:
        """The shape of each of them."""

    @property
    def shards(self) -> range:
        """The shards' numbers."""
        return range(-(-self.count // self.shard))

    def of(self, number: int) -> range:
        """The samples in a shard."""
        return range(self.count)[number * self.shard : (number + 1) * self.shard]

    def arrays(self, number: int) -> tuple[int, ...]:
        """The shape of a shard's arrays, (samples, views, ...)."""
        return (len(self.of(number)), self.views, *self.of_view)

    def row(self) -> np.dtype:
        """The type of a row: a label, and a checksum for each view."""
        return np.dtype([("label", "<i8"), ("check", "<u4", (self.views,))])

    @classmethod
    def load(cls, root: Path) -> Self:
        """Reads a folder's index; ValueError if it is missing or not an index."""
        path = root / cls.FILE
        if not path.is_file():
            raise ValueError(
                f"a folder of {cls.WHAT} must hold {cls.FILE}, which "
                f"`{commands.shown(cls.MAKER)}` writes; got none in {root}"
            )
        try:
            return serialization.from_dict(cls, json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} must be an index of {cls.WHAT}; got {reason}") from None

    def save(self, root: Path) -> None:
        """Writes JSON atomically."""
        write_whole(root / self.FILE, json.dumps(serialization.to_dict(self), indent=2) + "\n")

    def paths(self, root: Path, number: int) -> tuple[Path, Path]:
        """The files of a shard: its arrays, and its rows."""
        return root / f"{self.ARRAYS}-{number:05d}.npy", root / f"rows-{number:05d}.npy"


@dataclass(frozen=True, kw_only=True)
class Index(ShardIndex):
    """The description of a folder of latents."""

    FILE: ClassVar[str] = INDEX
    ARRAYS: ClassVar[str] = "moments"
    FREE: ClassVar[tuple[str, ...]] = ("vae",)  # compared by its weights
    WHAT: ClassVar[str] = "latents"
    MAKER: ClassVar[str] = "encode"
    REMEDY: ClassVar[str] = (
        f"`{commands.shown('encode')}` of the same images, into the same folder, makes it anew"
    )

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
    def views(self) -> int:
        """1, or 2 with the mirror image."""
        return 1 + self.mirrored

    @property
    def of_view(self) -> tuple[int, ...]:
        """The shape of the moments of one image, (2 C, H, W)."""
        channels, height, width = self.shape
        return (2 * channels, height, width)


def _checksum(view: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(view).data)


def begin(index: ShardIndex, out: Path) -> None:
    """Writes the index into a new or empty folder; leaves a folder with the same index as it is.

    Raises ValueError if ``out`` holds other files, or an index that differs.
    """
    out.mkdir(parents=True, exist_ok=True)
    if (out / index.FILE).is_file():
        found = index.load(out)
        for name in vars(index):
            ours, theirs = getattr(index, name), getattr(found, name)
            if name not in index.FREE and ours != theirs:
                raise ValueError(f"{out} must hold {index.WHAT} with {name} {ours}; got {theirs}")
    elif any(not path.name.startswith(".") for path in out.iterdir()):
        raise ValueError(f"a folder for {index.WHAT} must be empty; got files in {out}")
    else:
        index.save(out)


def write_shard(root: Path, index: ShardIndex, number: int, views: Tensor, labels: Tensor) -> None:
    """Writes a shard atomically; ``views`` are (samples, views, ...)."""
    assert tuple(views.shape) == index.arrays(number)
    array = views.cpu().numpy().astype(index.dtype)
    rows = np.empty(len(array), index.row())
    rows["label"] = labels.cpu().numpy()
    rows["check"] = [[_checksum(view) for view in sample] for sample in array]
    path, rows_path = index.paths(root, number)
    write_whole(rows_path, lambda file: np.save(file, rows))
    # Last: its existence marks the shard as complete.
    write_whole(path, lambda file: np.save(file, array))


I = TypeVar("I", bound=ShardIndex)  # noqa: E741


class Shards(Generic[I]):
    """The arrays and labels of a folder; creating it reads only labels and checksums."""

    def __init__(self, root: Path, index: I) -> None:
        """Raises ValueError, naming the first, if a shard is missing or differs from the index."""
        self.root, self.index = root, index
        shards = [_open(root, index, number) for number in index.shards]
        self._arrays = [arrays for arrays, _ in shards]
        self.rows = np.concatenate([rows for _, rows in shards])
        self.labels = torch.from_numpy(self.rows["label"].copy())
        self._intact = np.zeros(self.rows["check"].shape, bool)

    def read(self, samples: np.ndarray, views: np.ndarray) -> Tensor:
        """Views of samples, both given by indices (n,), stacked.

        Raises ValueError if they are damaged; checksums are compared when a view is first read.
        """
        numbers, rows = np.divmod(samples, self.index.shard)
        each, shape = self.index.views, self.index.of_view
        found = np.empty((len(samples), *shape), self.index.dtype)
        for number in np.unique(numbers):  # numpy's take releases the GIL
            here = numbers == number
            of_shard = self._arrays[number].reshape(-1, *shape)
            found[here] = np.take(of_shard, rows[here] * each + views[here], axis=0)
        for k in np.flatnonzero(~self._intact[samples, views]):
            if _checksum(found[k]) != self.rows["check"][samples[k], views[k]]:
                path = self.index.paths(self.root, numbers[k])[0]
                raise ValueError(
                    f"{path} is damaged: row {rows[k]} is not as it was written; "
                    f"{self.index.REMEDY}"
                )
        self._intact[samples, views] = True
        return torch.from_numpy(found)


def _open(root: Path, index: ShardIndex, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A shard's arrays, memory-mapped, and its rows."""
    path, rows_path = index.paths(root, number)
    arrays = _array(path, "r", np.dtype(index.dtype), index.arrays(number), index)
    rows = _array(rows_path, None, index.row(), (len(index.of(number)),), index)
    return arrays, rows


def _array(
    path: Path,
    mode: Literal["r"] | None,
    dtype: np.dtype,
    shape: tuple[int, ...],
    index: ShardIndex,
) -> np.ndarray:
    if not path.is_file():
        raise ValueError(
            f"{path} is missing, of {index.WHAT} that {index.FILE} declares; {index.REMEDY}"
        )
    try:
        array = np.load(path, mmap_mode=mode)
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged: {reason}; {index.REMEDY}") from None
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"{path} must hold {dtype} of shape {shape}, as {index.FILE} says; "
            f"got {array.dtype} of shape {array.shape}"
        )
    return array


def intact(root: Path, index: ShardIndex, number: int) -> bool:
    """Whether a shard exists and all of its checksums match."""
    try:
        arrays, rows = _open(root, index, number)
    except ValueError:
        return False
    checks = rows["check"]
    return all(
        _checksum(view) == check
        for sample, of_sample in zip(arrays, checks, strict=True)
        for view, check in zip(sample, of_sample, strict=True)
    )
