"""Downloads a run's checkpoints from an object store to a folder on this machine."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import ENOENT
from pathlib import Path

from vamf import cache
from vamf.run_layout import CHECKPOINTS, LOCK, MANIFEST, STATE, STEPS
from vamf.store import Store
from vamf.training.checkpoints.manifest import damage


def working_copy(store: Store, purpose: str) -> Path:
    """This machine's folder for a location in a store; it need not exist.

    It is in VAMF_CACHE if that is set, else in the user's cache folder.
    """
    digest = hashlib.sha256(str(store).encode()).hexdigest()[:12]
    parts = [re.sub(r"[^\w.=-]|^\.+$", "_", part) for part in (store.bucket, *store.path.parts)]
    return cache.folder().joinpath("store", digest, purpose, *parts)


def complete(run: Store) -> list[str]:
    """The names of a run's complete checkpoints (with a manifest), oldest first."""
    suffix = f"/{MANIFEST}"
    names = (run / CHECKPOINTS).names()
    return [name.removesuffix(suffix) for name in names if name.endswith(suffix)]


def fetch(run: Store, path: Path, *, whole: bool = True) -> None:
    """Downloads the checkpoint named ``path.name`` to ``path``; without its state unless ``whole``.

    An identical one at ``path`` is kept. Files are not checked here; ``damage`` does that. Raises
    StoreError if the store does not answer, FileNotFoundError if the checkpoint was deleted.
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
        with suppress(FileNotFoundError):  # ``damage`` will report it
            source.download(file, aside / file)
    (aside / MANIFEST).write_bytes(manifest)
    shutil.rmtree(path, ignore_errors=True)
    aside.rename(path)


def fetch_newest(run: Store, folder: Path) -> list[str]:
    """Downloads the newest intact checkpoint, damaged newer ones, and the metrics of older ones.

    Returns the names of the damaged ones; an empty list if no checkpoint is intact.
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
    """Downloads a checkpoint to a path shared by a node's processes; deletes others there."""
    with _alone(path.parent.parent):
        _remove_others(path.parent, [path.name])
        fetch(run, path)


def fetched(place: Store) -> Path:
    """Downloads a checkpoint, or the metrics of all checkpoints of a run; returns its folder.

    Raises StoreError if the store does not answer, FileNotFoundError if there is no checkpoint.
    """
    if MANIFEST in place.names():  # the address of one checkpoint
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
    for path in folder.glob(STEPS):
        if path.name not in names:
            shutil.rmtree(path)


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    with cache.alone(folder.with_name(f"{folder.name}{LOCK}")):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def _named(manifest: bytes) -> set[str]:
    """The files in its own folder that a manifest names; empty if it cannot be read."""
    try:
        return {name for name in json.loads(manifest) if Path(name).name == name}
    except (ValueError, TypeError):
        return set()


def _same(folder: Path, manifest: bytes) -> bool:
    with suppress(OSError):
        return (folder / MANIFEST).read_bytes() == manifest
    return False
