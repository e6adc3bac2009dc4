"""A folder of images of any format and size as a data set."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

import torch

from vamf.data.dataset import Images, ImageSet, Split, check_labels
from vamf.data.decode_cache import decoded
from vamf.data.image_files import Crop, Cut, images_and_others, report_unusable, usable
from vamf.data.listing import NAMED, format_names
from vamf.data.streaming import FileSet
from vamf.files import shown
from vamf.flow.oracle import EmpiricalVelocity
from vamf.typing import Label


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """Images below a folder: flat, or one subfolder for each class, numbered by name.

    Symbolic links are followed; names that begin with a dot, and the folders that macOS and network
    drives create, are ignored. ``Cut`` says how files become pixels.

    Sets of at most ``memory_gb`` are decoded into memory, on the device, as uint8; if decoding took
    long, the pixels are cached in VAMF_CACHE for other processes. Larger sets are read from disk
    batch by batch, before the steps that need them.
    """

    has_exact_velocity: ClassVar[bool] = False
    """Folders of any size are allowed, so the velocity, a sum over all images, is not offered."""

    root: Path = Path("data/images")
    """Folder of the training images."""
    test: Path | None = None
    """Folder of held-out images; without one the training images are used."""
    size: int = 64
    """Height and width to which images are scaled and cut."""
    channels: Literal[1, 3] = 3
    """3 for colour, 1 for grey."""
    crop: Crop = "centre"
    """`centre` scales the shorter side to `size` and cuts out the middle; `exact` accepts only
    files of that size."""
    classes: int = 0
    """Number of class subfolders; with 0 the images have no labels."""
    damaged: Literal["refuse", "skip"] = "refuse"
    """What to do with files that are not images, or of another size with the crop `exact`: `refuse`
    stops and names them, `skip` names them and continues."""
    memory_gb: float = 8.0
    """Sets up to this size, decoded, are kept in memory; larger ones are streamed from disk."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.classes < 0 or self.memory_gb < 0:
            raise ValueError(
                "a folder of images needs size >= 1, classes >= 0 and memory_gb >= 0; "
                f"got {self.size}, {self.classes} and {self.memory_gb}"
            )

    def velocity(self) -> EmpiricalVelocity:
        """Raises ValueError: the exact velocity is not offered for folders of images."""
        raise ValueError(f"a folder of images has no closed-form velocity; got {shown(self.root)}")

    @classmethod
    def of(
        cls, root: Path, channels: int, size: int, damaged: Literal["refuse", "skip"]
    ) -> "ImageFolder":
        """A folder whose images are measured unchanged: nothing is scaled or cut.

        Raises ValueError unless it has 1 or 3 channels.
        """
        if channels == 1:
            return cls(root=root, size=size, channels=1, crop="exact", damaged=damaged)
        if channels == 3:
            return cls(root=root, size=size, channels=3, crop="exact", damaged=damaged)
        raise ValueError(f"files of images have 1 or 3 channels; got {channels}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an image."""
        return (self.channels, self.size, self.size)

    @property
    def cut(self) -> Cut:
        """How files become pixels."""
        return Cut(size=self.size, channels=self.channels, crop=self.crop)

    def load(self, split: Split) -> Images:
        """The images of one split, (N, channels, size, size), sorted by file name.

        Raises ValueError for a folder without images, for files that cannot be used unless they are
        skipped, and for another number of class subfolders.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test'; got {split!r}")
        return _load(self, self.test if split == "test" and self.test else self.root)


@cache
def _load(folder: ImageFolder, root: Path) -> Images:
    (files, others), skip, cut = images_and_others(root), folder.damaged == "skip", folder.cut
    names = class_names(root, files, folder.classes)
    _same_classes(folder.root, root, names)
    if others:
        print(
            f"files that are not images by their endings, in {shown(root)}: {format_names(others)}",
            flush=True,
        )
    if len(files) * folder.channels * folder.size**2 > folder.memory_gb * 2**30:
        files = usable(files, cut, skip)
        return FileSet(files, cut, _labels(root, files, names), skip)
    images, complaints = decoded(root, files, cut)
    bad = [line for line in complaints if line]
    report_unusable(bad, len(files), skip)
    if bad:
        good = [index for index, line in enumerate(complaints) if not line]
        images, files = images[good], [files[index] for index in good]
    return ImageSet(images, _labels(root, files, names))


def class_names(root: Path, files: Sequence[Path], classes: int) -> list[str]:
    """The class subfolders' names in order; empty for 0 classes.

    Raises ValueError for another number of subfolders, or for images outside of them.
    """
    if not classes:
        return []
    if flat := [path for path in files if path.parent == root]:
        more = f" and {len(flat) - 1} more" if len(flat) > 1 else ""
        raise ValueError(
            f"images with classes must lie in class subfolders; got {shown(flat[0])}{more}"
        )
    counts = Counter(path.relative_to(root).parts[0] for path in files)
    if len(counts) != classes:
        raise ValueError(
            f"{shown(root)} must have {classes} class subfolders; got {_class_counts(root, counts)}"
        )
    return sorted(counts)


def _class_counts(root: Path, counts: Counter[str]) -> str:
    """Names the number of class subfolders, the smallest ones, and those without images."""
    fewest = sorted(counts.items(), key=lambda item: (item[1], item[0]))
    parts = ", ".join(f"{shown(Path(name))} {count}" for name, count in fewest[:NAMED])
    line = f"{len(counts)}, by number of images {parts}{', ...' * (len(counts) > NAMED)}"
    empty = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name not in counts)
    none = ", ".join(shown(Path(name)) for name in empty[:NAMED])
    return f"{line}; and without images {none}{', ...' * (len(empty) > NAMED)}" if empty else line


def _same_classes(train: Path, test: Path, names: Sequence[str]) -> None:
    """Raises ValueError for held-out classes that the training images do not have.

    Both have equally many classes, so without such a class both number them alike.
    """
    unknown = [name for name in names if train.is_dir() and not (train / name).is_dir()]
    if unknown:
        named = ", ".join(shown(Path(name)) for name in unknown[:NAMED])
        raise ValueError(
            f"{shown(test)} must have the class subfolders of {shown(train)}; got {named}"
        )


def _labels(root: Path, files: Sequence[Path], names: Sequence[str]) -> Label:
    if not names:
        return torch.zeros(len(files), dtype=torch.long)
    number = {name: index for index, name in enumerate(names)}
    labels = torch.tensor([number[path.relative_to(root).parts[0]] for path in files])
    check_labels(labels, len(names), root)
    return labels
