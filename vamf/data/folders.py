"""A folder of images of any format and size, as a data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

import torch

from vamf.data.dataset import Images, ImageSet, Split, check_labels
from vamf.data.decoded import decoded
from vamf.data.files import Crop, Cut, image_files, tell, usable
from vamf.data.streaming import FileSet
from vamf.flow.oracle import EmpiricalVelocity
from vamf.typing import Label


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """Images below a folder: flat, or one subfolder a class, numbered by name.

    Decoded images that fit live in memory, on the device, as uint8; what takes long to decode is
    kept in VAMF_CACHE for other processes. Larger sets are read from disk batch by batch, ahead of
    the steps that need them.
    """

    has_velocity: ClassVar[bool] = False
    """Whether the true marginal velocity has a closed form that can be afforded."""

    root: Path = Path("data/images")
    """Folder of the training images."""
    test: Path | None = None
    """Folder of held-out images; without one the training images take their place."""
    size: int = 64
    """Height and width of the images that are learnt."""
    channels: Literal[1, 3] = 3
    """3 for colour, 1 for grey."""
    crop: Crop = "centre"
    """`centre` scales the shorter side to `size` and cuts out the middle; `exact` takes no file of
    another size."""
    classes: int = 0
    """Number of class subfolders; 0 takes no labels from them."""
    damaged: Literal["refuse", "skip"] = "refuse"
    """What becomes of files that are no images, or of another size with the crop `exact`: `refuse`
    stops and names them, `skip` names them and goes on."""
    memory_gb: float = 8.0
    """Decoded images up to this size live in memory; larger sets are streamed from disk."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.classes < 0 or self.memory_gb < 0:
            raise ValueError(
                "a folder of images needs size >= 1, classes >= 0 and memory_gb >= 0; "
                f"got {self.size}, {self.classes} and {self.memory_gb}"
            )

    def velocity(self) -> EmpiricalVelocity:
        """Raises ValueError: of a folder of any size no closed form is offered."""
        raise ValueError(f"a folder of images has no closed-form velocity; got {self.root}")

    @classmethod
    def of(
        cls, root: Path, channels: int, size: int, damaged: Literal["refuse", "skip"]
    ) -> "ImageFolder":
        """A folder that is to be measured as it is: nothing is scaled or cut.

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
        """How its files become pixels."""
        return Cut(size=self.size, channels=self.channels, crop=self.crop)

    def load(self, split: Split) -> Images:
        """The images of one split, (N, channels, size, size), by the names of their files.

        Raises ValueError for no images, for files of no use unless they are skipped, and for
        another number of class subfolders.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test'; got {split!r}")
        return _load(self, self.test if split == "test" and self.test else self.root)


@cache
def _load(folder: ImageFolder, root: Path) -> Images:
    files, skip, cut = image_files(root), folder.damaged == "skip", folder.cut
    names = class_names(root, files, folder.classes)
    if len(files) * folder.channels * folder.size**2 > folder.memory_gb * 2**30:
        files = usable(files, cut, skip)
        return FileSet(files, cut, _labels(root, files, names), skip)
    images, complaints = decoded(root, files, cut)
    bad = [line for line in complaints if line]
    tell(bad, len(files), skip)
    if bad:
        good = [index for index, line in enumerate(complaints) if not line]
        images, files = images[good], [files[index] for index in good]
    return ImageSet(images, _labels(root, files, names))


def class_names(root: Path, files: Sequence[Path], classes: int) -> list[str]:
    """The class subfolders' names in order; none for 0 classes.

    Raises ValueError for another number of them, or for images beside them.
    """
    if not classes:
        return []
    flat = next((path for path in files if path.parent == root), None)
    if flat:
        raise ValueError(f"images with classes must lie in class subfolders; got {flat}")
    names = sorted({path.relative_to(root).parts[0] for path in files})
    if len(names) != classes:
        raise ValueError(f"{root} must have {classes} class subfolders; got {len(names)}")
    return names


def _labels(root: Path, files: Sequence[Path], names: Sequence[str]) -> Label:
    if not names:
        return torch.zeros(len(files), dtype=torch.long)
    number = {name: index for index, name in enumerate(names)}
    labels = torch.tensor([number[path.relative_to(root).parts[0]] for path in files])
    check_labels(labels, len(names), root)
    return labels
