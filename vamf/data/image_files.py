"""Finds image files, decodes them to pixels of one size, and reports those that cannot be used."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from vamf import cpus
from vamf.data.colours import has_range, picture
from vamf.data.listing import format_names, formats, listed
from vamf.errors import one_line
from vamf.files import seems, shown
from vamf.output import say
from vamf.typing import Pixels

T = TypeVar("T")
R = TypeVar("R")

Crop = Literal["centre", "exact"]

THREADS = min(8, cpus.usable())
"""Threads that decode: Pillow releases the GIL; with small files, more threads are slower."""
NAMED = 3
"""How many unusable files a message names."""


class Unreadable(ValueError):
    """A file that is not an image, or not of the declared size."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a file of any size becomes pixels of one shape."""

    size: int
    """Height and width."""
    channels: Literal[1, 3]
    """3 for RGB, 1 for grey."""
    crop: Crop
    """`centre` scales the shorter side to ``size`` and cuts out the middle; `exact` accepts only
    files of that size."""

    def __call__(self, path: Path) -> Pixels:
        """The pixels of a file, (channels, size, size); raises Unreadable with the reason.

        See ``picture`` for 16 bits, transparency, orientation, colour profiles and frames.
        """
        with self.opened(path) as image:
            return as_pixels(self._resized(picture(image, _mode(self.channels))))

    def check(self, path: Path) -> None:
        """Raises Unreadable if the header does not fit; damage after the header is not detected."""
        with self.opened(path):
            pass

    @contextmanager
    def opened(self, path: Path) -> Iterator[Image.Image]:
        """Opens a file's image; any error while it is open becomes Unreadable."""
        try:
            # Given a name, Pillow would map the file into memory, and garble rotated TIFFs.
            with path.open("rb") as file, Image.open(file, "r", formats()) as image:
                self._check(image, path)
                yield image
        except Unreadable:
            raise
        except Exception as error:  # decoders raise errors of any type
            reason = seems(path) or _reason(error)
            raise Unreadable(f"{shown(path)} is no image that Pillow reads: {reason}") from None

    def _check(self, image: Image.Image, path: Path) -> None:
        if self.crop == "exact" and image.size != (self.size, self.size):
            width, height = image.size
            must = f"must be {self.size}x{self.size}"
            raise Unreadable(f"{shown(path)} {must}; got {width}x{height}")
        if not has_range(image):
            must = "must have levels of 1 to 16 bits, whose range is known"
            found = f"mode {image.mode} in a {image.format} file"
            raise Unreadable(f"{shown(path)} {must}; got {found}")

    def _resized(self, image: Image.Image) -> Image.Image:
        """Halves by averaging while at least twice too large, then resizes bicubically, as ADM."""
        if image.size == (self.size, self.size):
            return image
        while min(image.size) >= 2 * self.size:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = self.size / min(image.size)
        width, height = (max(self.size, round(scale * side)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return image.crop((left, top, left + self.size, top + self.size))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "its content is of no known format"
    return one_line(error)


def _mode(channels: int) -> str:
    return "L" if channels == 1 else "RGB"


def as_pixels(image: Image.Image) -> Pixels:
    """A Pillow image in grey or RGB as (channels, height, width)."""
    array = np.array(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1).contiguous()


def image_files(folder: Path) -> list[Path]:
    """All images below a folder by name (see ``listed``); ValueError if there are none."""
    return images_and_others(folder)[0]


def images_and_others(folder: Path) -> tuple[list[Path], list[Path]]:
    """All images below a folder, and all files whose endings are not those of images, by name.

    Raises ValueError if there are no images.
    """
    require_folder(folder)
    images, others = listed(folder)
    if not images:
        also = f", but files with other endings: {format_names(others)}" if others else ""
        found = f"none in {shown(folder)}{also}"
        raise ValueError(f"a folder of images must hold at least one; got {found}")
    return images, others


def require_folder(folder: Path) -> None:
    """Raises ValueError unless the folder exists; its contents are not read."""
    if not folder.is_dir():
        raise ValueError(f"a folder of images must exist; got {shown(folder)}")


def stamp(path: Path) -> tuple[int, int]:
    """Size and modification time, which identify a file's content; (-1, -1) if it is missing."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def usable(files: Sequence[Path], cut: Cut, skip: bool) -> list[Path]:
    """The files whose header fits; with ``skip`` the others are reported and left out.

    Raises ValueError, naming the first of them, if some do not fit and not ``skip``.
    """
    complaints = parallel(lambda path: complaint(cut, path), files)
    bad = [line for line in complaints if line]
    report_unusable(bad, len(files), skip)
    return [path for path, line in zip(files, complaints, strict=True) if not line]


def complaint(cut: Cut, path: Path) -> str:
    """What is wrong with a file's header; empty if nothing."""
    try:
        cut.check(path)
    except Unreadable as error:
        return str(error)
    return ""


def report_unusable(bad: Sequence[str], total: int, skip: bool) -> None:
    """Prints the problems if ``skip``, else raises ValueError; does nothing without problems."""
    if not bad:
        return
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    line = f"{len(bad)} of {total} files cannot be used: {'; '.join(bad[:NAMED])}{more}"
    if not skip or len(bad) == total:
        raise ValueError(line)
    say(f"skipped {line}")


def parallel(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``function`` of each item, in order, on several threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, items))


def decode(files: Sequence[Path], cut: Cut) -> tuple[Pixels, list[str]]:
    """All files' pixels, (n, channels, size, size), and what is wrong with each, empty if nothing.

    The pixels of files that cannot be decoded are 0.
    """
    images = torch.zeros(len(files), cut.channels, cut.size, cut.size, dtype=torch.uint8)

    def read(index: int) -> str:
        try:
            images[index] = cut(files[index])
        except Unreadable as error:
            return str(error)
        return ""

    return images, parallel(read, range(len(files)))
