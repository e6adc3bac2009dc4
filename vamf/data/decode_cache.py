"""Caches the decoded images of a folder on disk for other processes."""

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch

from vamf import cache
from vamf.data.colours import VERSION
from vamf.data.image_files import Cut, decode, stamp
from vamf.files import write_whole
from vamf.output import say
from vamf.typing import Pixels

WORTH_S = 1.0
"""Images that were decoded in less time are not cached."""


def decoded(root: Path, files: Sequence[Path], cut: Cut) -> tuple[Pixels, list[str]]:
    """``decode`` of the files below ``root``, or its cached result: the workers of a run and the
    trials of a search are processes that need the same images.

    Files are the same if their names, sizes and modification times are; those that could not be
    decoded are tried again, as the disk may have failed. One process of a machine decodes while
    the others wait.
    """
    path = cache.place(_key(root, files, cut), ".npz", "pixels")
    if (found := _read(path)) is not None:
        return _retried(*found, files, cut)
    with cache.alone(path) as writable:
        if (found := _read(path)) is not None:
            return _retried(*found, files, cut)
        start = time.monotonic()
        images, complaints = decode(files, cut)
        if writable and time.monotonic() - start >= WORTH_S:
            _write(path, images, complaints)
    return images, complaints


def _key(root: Path, files: Sequence[Path], cut: Cut) -> dict[str, str]:
    seen = hashlib.sha256()
    for path in files:
        size, changed = stamp(path)
        seen.update(os.fsencode(path.relative_to(root)) + f"\0{size}\0{changed}\n".encode())
    how = {name: str(value) for name, value in asdict(cut).items()}
    return {"root": str(root.resolve()), "files": seen.hexdigest(), "version": VERSION, **how}


def _read(path: Path) -> tuple[Pixels, list[str]] | None:
    """The cached result, or None if it is missing or damaged: zip files have checksums."""
    try:
        with ZipFile(path) as kept:
            images, complaints = (_array(kept, f"{name}.npy") for name in ("images", "complaints"))
        return torch.from_numpy(images), complaints.tolist()
    except Exception:  # zipfile, zlib and NumPy raise many types of error for damaged bytes
        return None


def _array(kept: ZipFile, name: str) -> np.ndarray:
    """Reads to the end, where zipfile checks the checksum: np.load stops where the header says."""
    with kept.open(name) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise BadZipFile(f"{name} is longer than it says")
    return array


def _retried(
    images: Pixels, complaints: list[str], files: Sequence[Path], cut: Cut
) -> tuple[Pixels, list[str]]:
    bad = [index for index, line in enumerate(complaints) if line]
    images[bad], again = decode([files[index] for index in bad], cut)
    for index, line in zip(bad, again, strict=True):
        complaints[index] = line
    return images, complaints


def _write(path: Path, images: Pixels, complaints: Sequence[str]) -> None:
    pixels, lines = images.numpy(), np.array(complaints)
    try:
        write_whole(path, lambda file: np.savez(file, images=pixels, complaints=lines))
    except OSError as error:
        say(f"decoded images were not kept: {error}")
        return
    size = images.nbytes / 2**20
    say(f"decoded {len(images)} files; their pixels, {size:.0f} MiB, are in {path}")
