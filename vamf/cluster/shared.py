"""A folder that all nodes see, which is not believed but tried."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vamf.store import Place


@contextmanager
def marked(folder: Path) -> Iterator[Path]:
    """A file in a folder, by which other nodes know that they see the same one.

    Of a new name each time: a network's file system may remember which names were not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / f".seen_{uuid.uuid4().hex}"
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def unseen(place: Place, nodes: list[str], what: str = "the storage must be ") -> ValueError:
    """The refusal of storage in which some nodes do not find a mark."""
    must = "a folder that all nodes see" if isinstance(place, Path) else "one that all nodes reach"
    return ValueError(
        f"{what}{must}; got {place}, in which {', '.join(nodes)} cannot see the run's files"
    )
