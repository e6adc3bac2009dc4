"""Tests whether all nodes see the same folder."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vamf.store import StoragePath


@contextmanager
def probe_file(folder: Path) -> Iterator[Path]:
    """Creates a file in a folder, by which other nodes check that they see the same folder.

    Its name is new each time, as a network file system may cache that a name does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".seen_{uuid.uuid4().hex}"
    probe.touch()
    try:
        yield probe
    finally:
        probe.unlink(missing_ok=True)


def not_shared(
    storage: StoragePath, nodes: list[str], what: str = "the storage must be "
) -> ValueError:
    """The error for storage in which some nodes do not find the probe file."""
    must = (
        "a folder that all nodes see" if isinstance(storage, Path) else "one that all nodes reach"
    )
    return ValueError(
        f"{what}{must}; got {storage}, in which {', '.join(nodes)} cannot see the run's files"
    )
