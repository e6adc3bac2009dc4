"""What is computed once on a machine: files named by a hash of all that they depend on."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path


def folder() -> Path:
    """VAMF_CACHE, else the user's cache folder; made if it is not there."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VAMF_CACHE") or Path(home) / "vamf")


def place(key: Mapping[str, str], suffix: str) -> Path:
    """Where the file of this key lies, whether it is there or not."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return folder() / "reference" / f"{digest}{suffix}"


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Makes the file's folder and keeps other processes out; yields whether it can be written.

    Where locks do not work two processes may do the same work, and none harms the other's.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.with_suffix(".lock").open("a+b")
    except OSError:
        yield False
        return
    with handle:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield True
