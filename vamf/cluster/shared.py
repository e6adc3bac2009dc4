"""A folder that all nodes see, which is not believed but tried."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def unseen(mark: Path, nodes: list[str]) -> ValueError:
    """The refusal of storage in which some nodes do not find the mark."""
    return ValueError(
        f"the storage must be a folder that all nodes see; got {mark.parent}, "
        f"in which {', '.join(nodes)} cannot see the run's files"
    )
