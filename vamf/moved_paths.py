"""Compares and updates paths of files that were moved with a run's folder, or saved as relative."""

from collections.abc import Callable
from pathlib import Path


def following(before: Path, now: Path) -> Callable[[Path], Path]:
    """A function that updates paths after a folder was moved from ``before`` to ``now``.

    A path that no longer exists is changed if the file is at the same place relative to ``now``;
    other paths stay the same.
    """
    above = list(zip([before, *before.parents], [now, *now.parents], strict=False))

    def follow(path: Path) -> Path:
        old = [(a, b) for a, b in above if path.is_relative_to(a)] if not path.exists() else []
        found = (new / path.relative_to(old) for old, new in old)
        return next((place for place in found if place.exists()), path)

    return follow


def same(there: object, here: object) -> bool:
    """Whether two values may be paths of one file: the first is relative, or was moved."""
    if not (isinstance(there, str) and isinstance(here, str)):
        return False
    return _ends(Path(there), Path(here)) or _moved(Path(there), Path(here))


def _ends(relative: Path, whole: Path) -> bool:
    """Whether ``relative`` is a relative path, and ``whole`` an absolute one that ends with it."""
    if relative.is_absolute() or not whole.is_absolute():
        return False
    count = len(relative.parts)
    return count == 0 or whole.parts[-count:] == relative.parts


def _moved(gone: Path, found: Path) -> bool:
    """Whether both are absolute paths with the same name, and only ``found`` exists."""
    if gone.name != found.name or not (gone.is_absolute() and found.is_absolute()):
        return False
    return found.exists() and not gone.exists()
