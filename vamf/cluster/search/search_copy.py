"""A search in an object store: each process works on a copy of its files on its machine."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePosixPath

from vamf.cluster.search.search_config import Sweep
from vamf.cluster.train.run_lock import exclusive
from vamf.cluster.train.store_sync import OWN, PICTURES, inside, stamp
from vamf.errors import StoreError
from vamf.files import write_whole
from vamf.run_layout import DRIVERS, LOCK, SPOOL, STUDY, TRIAL, WRITE_TEST, trial_name
from vamf.store import Store
from vamf.training.checkpoints.remote_checkpoints import working_copy

LEFT_OUT = frozenset((*OWN, *PICTURES, DRIVERS))
"""Folders that are not copied: the trials' runs copy their own checkpoints and pictures."""


class SearchCopy:
    """A working copy of a search's folder or of a trial's, and its place in an object store.

    A study that is a file is uploaded as its last transaction has left it. Methods raise
    StoreError if the store does not answer. Only one process at a time may write.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self._known: dict[str, tuple[int, int]] = {}

    def clear(self) -> None:
        """Deletes what an earlier process left in the folder: only the store's files count."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._known.clear()

    def pull(self, below: str = "", *, ended: bool = True) -> None:
        """Downloads all files, or those below a name; without ``ended`` no trials with a record."""
        place = self.store / below if below else self.store
        for name in (f"{below}/{name}" if below else name for name in place.names()):
            path = self.folder / inside(name)
            known = not ended and (self.folder / Path(name).parts[0] / TRIAL).exists()
            if _is_copied(name) and not known:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, self.store.read(name))
                self._known[name] = stamp(path)

    def push(self) -> None:
        """Uploads all files that have changed, and deletes those that are gone."""
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        named = {path.relative_to(self.folder).as_posix(): path for path in paths}
        now = {name: stamp(path) for name, path in named.items() if _is_copied(name)}
        for name in sorted(now):
            if self._known.get(name) != now[name]:
                self.store.write(name, _content(named[name]))
                self._known[name] = now[name]
        for name in self._known.keys() - now.keys():
            self.store.delete(name)
            del self._known[name]


def _is_copied(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = path.name.startswith(".") or path.suffix == LOCK or path.name == WRITE_TEST
    return not hidden and not LEFT_OUT & set(path.parts) and not path.name.startswith(f"{STUDY}-")


def _content(file: Path) -> bytes:
    """A file's content; of a study what its last transaction has left."""
    if file.name != STUDY:
        return file.read_bytes()
    with closing(sqlite3.connect(file)) as study, closing(sqlite3.connect(":memory:")) as copy:
        study.backup(copy)
        return copy.serialize()


@cache
def _copy(store: Store, folder: Path) -> SearchCopy:
    return SearchCopy(store, folder)


def driver_copy(sweep: Sweep) -> SearchCopy | None:
    """The working copy of this search's driver; None for a search in a folder."""
    return None if sweep.store is None else _copy(sweep.store, sweep.directory)


def begun_copy(store: Store) -> SearchCopy:
    """An empty working copy for this process as a search's driver."""
    copy = _copy(store, working_copy(store, "driver"))
    copy.clear()
    return copy


def push(sweep: Sweep) -> None:
    """Uploads what has changed, if the search is in a store."""
    if (copy := driver_copy(sweep)) is not None:
        copy.push()


def pull_trial(sweep: Sweep, number: int) -> None:
    """Downloads what a trial's process has written, if the search is in a store."""
    if (copy := driver_copy(sweep)) is not None:
        copy.pull(trial_name(number))


def pull_unfinished(sweep: Sweep) -> None:
    """Downloads the files of trials that have no record here, if the search is in a store."""
    if (copy := driver_copy(sweep)) is not None:
        copy.pull(ended=False)


@contextmanager
def mirrored(sweep: Sweep) -> Iterator[None]:
    """Locks a search in a store on this machine; uploads what has changed at the block's end."""
    if sweep.store is None:
        yield
        return
    with exclusive(sweep.store):
        try:
            yield
        except BaseException:
            with suppress(StoreError):
                push(sweep)
            raise
        push(sweep)


@contextmanager
def trial_copy(sweep: Sweep, number: int) -> Iterator[Sweep]:
    """In a trial's process: the search with a working copy of this trial on this node."""
    if sweep.store is None:
        yield sweep
        return
    name, folder = trial_name(number), working_copy(sweep.store, "trial")
    (folder / SPOOL).mkdir(parents=True, exist_ok=True)
    copy = SearchCopy(sweep.store / name, folder / name)
    copy.clear()
    copy.pull()
    try:
        yield replace(sweep, directory=folder, parent=sweep.parent.kept_in(folder))
    finally:
        copy.push()
