"""What is computed once on a machine: files named by a hash of all that they depend on."""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from vamf.distributed import Workers
from vamf.files import expanded, home, write_whole
from vamf.output import say

Figures = Mapping[str, tuple[float, float]]
"""Values with their standard errors, by name."""


FOLDERS = ("VAMF_CACHE", "XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME")
"""Environment variables that name folders of vamf's, or of a library that keeps weights."""


def folder() -> Path:
    """VAMF_CACHE, else the user's cache folder, absolute; ValueError without a home."""
    if given := os.environ.get("VAMF_CACHE"):
        return expanded(Path(given)).absolute()
    caches = os.environ.get("XDG_CACHE_HOME") or home() / ".cache"
    return expanded(Path(caches) / "vamf").absolute()


def settle() -> None:
    """Makes the environment's folders absolute, for processes that will work in other folders."""
    for name in FOLDERS:
        if given := os.environ.get(name):
            os.environ[name] = str(expanded(Path(given)).absolute())


def place(key: Mapping[str, str], suffix: str, kind: str = "reference") -> Path:
    """Where the file of this key lies among those of its kind, whether it is there or not."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return folder() / kind / f"{digest}{suffix}"


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


def figures(key: Mapping[str, str], workers: Workers, measure: Callable[[], Figures]) -> Figures:
    """The figures of this key: those that are kept, or else measured, and kept if possible.

    Collective: rank 0 looks, and either tells the others or all measure together.
    """
    path = place(key, ".json")
    with alone(path) if workers.rank == 0 else nullcontext(False) as writable:
        kept = workers.gather(_read(path) if workers.rank == 0 else "")[0]
        if kept:
            return {name: (value, error) for name, (value, error) in json.loads(kept).items()}
        found = measure()
        if writable:
            _write(path, key, found)
    return found


def _read(path: Path) -> str:
    """The figures as JSON, or nothing if they are not there, or damaged."""
    try:
        return json.dumps(json.loads(path.read_text())["figures"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _write(path: Path, key: Mapping[str, str], found: Figures) -> None:
    pairs = {name: list(figure) for name, figure in found.items()}
    try:
        write_whole(path, json.dumps({"protocol": dict(key), "figures": pairs}))
    except OSError as error:
        say(f"figures were not kept: {error}")
