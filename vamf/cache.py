"""A cache on this machine: files named by a hash of all that they depend on."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from vamf.distributed import Workers
from vamf.file_lock import locked
from vamf.files import expanded, home, write_whole
from vamf.output import say
from vamf.run_layout import LOCK
from vamf.typing import Estimates

FOLDERS = ("VAMF_CACHE", "XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME")
"""Environment variables that name cache folders of vamf, or of a library that stores weights."""


def folder() -> Path:
    """VAMF_CACHE, else the user's cache folder, absolute; ValueError without a home."""
    if given := os.environ.get("VAMF_CACHE"):
        return expanded(Path(given)).absolute()
    caches = os.environ.get("XDG_CACHE_HOME") or home() / ".cache"
    return expanded(Path(caches) / "vamf").absolute()


def make_absolute() -> None:
    """Makes the environment's folders absolute, for processes that will work in other folders."""
    for name in FOLDERS:
        if given := os.environ.get(name):
            os.environ[name] = str(expanded(Path(given)).absolute())


def place(key: Mapping[str, str], suffix: str, kind: str = "reference") -> Path:
    """The path of the file for a key and a kind of file; it need not exist."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return folder() / kind / f"{digest}{suffix}"


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Creates the file's folder and locks the file; yields whether the folder is writable.

    Where locks do not work, two processes may do the same work; the results are still correct.
    """
    with ExitStack() as lock:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            writable = lock.enter_context(locked(path.with_suffix(LOCK), wait=True))
        except OSError:
            writable = False
        yield writable


def estimates(
    key: Mapping[str, str], workers: Workers, measure: Callable[[], Estimates]
) -> Estimates:
    """The cached estimates of a key; if there are none, measures them and caches them if possible.

    Collective: rank 0 reads the cache and sends the estimates to all; otherwise all measure
    together.
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
    """The cached estimates as JSON; empty if they are missing or damaged."""
    try:
        return json.dumps(json.loads(path.read_text())["figures"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _write(path: Path, key: Mapping[str, str], found: Estimates) -> None:

    pairs = {name: list(estimate) for name, estimate in found.items()}
    try:
        write_whole(path, json.dumps({"protocol": dict(key), "figures": pairs}))
    except OSError as error:
        say(f"metrics were not cached: {error}")
