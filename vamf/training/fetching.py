"""Checkpoints of a run in an object store, brought into a folder of this machine."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import ENOENT
from pathlib import Path

from vamf import cache
from vamf.store import Store
from vamf.training.manifest import MANIFEST, STATE, damage

CHECKPOINTS = "checkpoints"
"""The folder of a run that holds them."""


def working_copy(store: Store, purpose: str) -> Path:
    """The folder of this machine that stands for a place in a store, whether it is there or not.

    In VAMF_CACHE, or else the user's cache.
    """
    digest = hashlib.sha256(str(store).encode()).hexdigest()[:12]
    parts = [re.sub(r"[^\w.=-]|^\.+$", "_", part) for part in (store.bucket, *store.path.parts)]
    return cache.folder().joinpath("store", digest, purpose, *parts)


def complete(run: Store) -> list[str]:
    """The checkpoints of a run, oldest first; without its manifest there is none."""
    suffix = f"/{MANIFEST}"
    names = (run / CHECKPOINTS).names()
    return [name.removesuffix(suffix) for name in names if name.endswith(suffix)]


def fetch(run: Store, path: Path, *, whole: bool = True) -> None:
    """Brings the run's checkpoint of that name, or all but its state, to ``path``.

    One that is there already stays. Nothing is checked here: the manifest tells what is wrong.
    Raises StoreError if the store does not answer, FileNotFoundError if it has it no more.
    """
    source = run / CHECKPOINTS / path.name
    manifest = source.read(MANIFEST)
    files = _named(manifest) - ({STATE} if not whole else set())
    if _same(path, manifest) and all((path / file).exists() for file in files):
        return
    aside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for file in files:
        with suppress(FileNotFoundError):  # the manifest tells
            source.download(file, aside / file)
    (aside / MANIFEST).write_bytes(manifest)
    shutil.rmtree(path, ignore_errors=True)
    aside.rename(path)


def fetch_newest(run: Store, folder: Path) -> list[str]:
    """Brings the newest intact checkpoint, damaged ones after it, and of older ones the figures.

    Returns the names of the damaged ones, if there is one to go on from.
    """
    wrong: list[str] = []
    names = complete(run)
    while names:
        name = names.pop()
        fetch(run, folder / name)
        if damage(folder / name) is None:
            for older in names:
                fetch(run, folder / older, whole=False)
            return wrong
        wrong.append(name)
    return []


def fetch_alone(run: Store, path: Path) -> None:
    """Brings a checkpoint to a path that the processes of a node share, in place of others."""
    with _alone(path.parent.parent):
        _remove_others(path.parent, [path.name])
        fetch(run, path)


def fetched(place: Store) -> Path:
    """The folder of a checkpoint in a store, or of a run with the figures of all of them.

    Raises StoreError if the store does not answer, FileNotFoundError if none is there.
    """
    if MANIFEST in place.names():  # a checkpoint's own address
        run = place.parent.parent
        with _alone(working_copy(run, "read")) as folder:
            path = folder / CHECKPOINTS / place.name
            fetch(run, path)
            return path
    if not (names := complete(place)):
        raise FileNotFoundError(ENOENT, "there is none", str(place))
    with _alone(working_copy(place, "read")) as folder:
        _remove_others(folder / CHECKPOINTS, names)
        for name in names:
            fetch(place, folder / CHECKPOINTS / name, whole=False)
        return folder


def _remove_others(folder: Path, names: Sequence[str]) -> None:
    for path in folder.glob("step_*"):
        if path.name not in names:
            shutil.rmtree(path)


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    with cache.alone(folder.with_name(f"{folder.name}.lock")):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def _named(manifest: bytes) -> set[str]:
    """The files that a manifest names in its own folder; none if it cannot be read."""
    try:
        return {name for name in json.loads(manifest) if Path(name).name == name}
    except (ValueError, TypeError):
        return set()


def _same(folder: Path, manifest: bytes) -> bool:
    with suppress(OSError):
        return (folder / MANIFEST).read_bytes() == manifest
    return False
