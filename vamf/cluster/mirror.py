"""A run's folder and its copy in an object store, which is brought up to date in the background."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vamf.files import write_whole
from vamf.store import Store, StoreError
from vamf.tracking.spool import Spool
from vamf.training.fetching import CHECKPOINTS, complete, fetch_newest
from vamf.training.manifest import MANIFEST
from vamf.training.restoring import Note

PAUSES_S = (1.0, 4.0, 15.0)
"""Seconds to wait before what failed is tried again."""

OWN = (CHECKPOINTS, "ray", "uploading")
"""Folders of a run that are not mirrored file by file."""

PICTURES = ("samples", "landscape")
"""Folders of a run that nobody reads again to go on with it."""


class Mirror:
    """A working copy of a run's folder, and the object store that holds the run.

    Checkpoints go to the store one after the other: first what goes with them, the manifest last,
    so that one without a manifest does not exist. What the folder no longer keeps is then deleted
    there. All other files follow as they are. One process at a time writes.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self._known: dict[str, tuple[int, int]] = {}
        self._there: set[str] = set()
        self._wake, self._ending = threading.Event(), threading.Event()
        self._note: Note = lambda name, text: None
        self._failure: StoreError | None = None

    def clear(self) -> None:
        """Forgets what an earlier process has left in the folder: the store's word counts."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._known.clear()

    def pull(self) -> None:
        """Brings the run's files, but neither checkpoints nor pictures."""
        for name in self.store.names():
            if name.split("/")[0] not in (*OWN, *PICTURES):
                path = self.folder / _inside(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, self.store.read(name))
                self._known[name] = _stamp(path)

    def push(self) -> None:
        """Brings the store's copies of all files up to date, but for checkpoints."""
        now, contents = self._changed()
        for name, content in contents.items():
            self.store.write(name, content)
            self._known[name] = now[name]
        for name in self._known.keys() - now.keys():
            self.store.delete(name)
            del self._known[name]

    def fetch(self) -> None:
        """Brings the checkpoints that training goes on from; the store loses damaged ones after."""
        for name in fetch_newest(self.store, self.folder / CHECKPOINTS):
            self.store.delete(f"{CHECKPOINTS}/{name}/{MANIFEST}")
        self._there = set(complete(self.store))

    def changed(self) -> None:
        """Has checkpoints and files brought to the store; does not wait for it."""
        self._wake.set()

    @contextmanager
    def following(self, note: Note) -> Iterator[None]:
        """Works in the background until the block ends, and then until all is in the store.

        What fails is tried again, then noted, and tried again with the next checkpoint. Raises
        StoreError if it fails at the end.
        """
        self._note = note
        thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ending.set()
            self._wake.set()
            thread.join()
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        last = False
        while not last:
            self._wake.wait()
            self._wake.clear()
            last = self._ending.is_set()
            before, self._failure = self._failure, self._tried()
            if self._failure is not None and before is None:
                self._note("storage.behind", f"{self._failure}; training goes on")

    def _tried(self) -> StoreError | None:
        for pause in (*PAUSES_S, None):
            try:
                self._sync()
                return None
            except Exception as error:  # whatever it is: nothing is lost silently
                if pause is None:
                    return error if isinstance(error, StoreError) else StoreError(repr(error))
                time.sleep(pause)
        return None

    def _sync(self) -> None:
        self.push()  # first: what a checkpoint's steps have logged is sent, or in the store too
        while missing := self._missing():
            if self._upload(missing[-1]):
                self._prune(missing[-1])

    def _missing(self) -> list[str]:
        """The checkpoints that the store lacks, oldest first."""
        return sorted(self._here() - self._there)

    def _here(self) -> set[str]:
        return {path.name for path in (self.folder / CHECKPOINTS).glob("step_*")}

    def _upload(self, name: str) -> bool:
        """Brings a checkpoint to the store; False if the folder has dropped it meanwhile."""
        source, aside = self.folder / CHECKPOINTS / name, self.folder / "uploading"
        target = self.store / CHECKPOINTS / name
        shutil.rmtree(aside, ignore_errors=True)
        try:
            # Links: the folder may drop the checkpoint while it is on its way.
            shutil.copytree(source, aside, copy_function=_link)
        except OSError:
            if source.exists():
                raise
            return False
        target.delete(MANIFEST)
        for path in sorted(aside.iterdir(), key=lambda path: path.name == MANIFEST):
            target.upload(path, path.name)
        shutil.rmtree(aside)
        self._there.add(name)
        return True

    def _prune(self, fresh: str) -> None:
        stored = self.store / CHECKPOINTS
        for name in {name.split("/")[0] for name in stored.names()} - self._here() - {fresh}:
            stored.delete(f"{name}/{MANIFEST}")
            stored.remove(name)
            self._there.discard(name)

    def _changed(self) -> tuple[dict[str, tuple[int, int]], dict[str, bytes]]:
        """The folder's files as they are now, and the contents of those the store has not."""
        with ExitStack() as stack:
            for queue in self.folder.glob("spool/*/events.jsonl"):
                stack.enter_context(Spool(queue.parent).still())
            now = {path.relative_to(self.folder).as_posix(): path for path in self._files()}
            stamps = {name: _stamp(path) for name, path in now.items()}
            changed = (name for name in now if self._known.get(name) != stamps[name])
            return stamps, {name: now[name].read_bytes() for name in changed}

    def _files(self) -> Iterator[Path]:
        tops = (path for path in self.folder.iterdir() if path.name not in OWN)
        for top in tops:
            for path in top.rglob("*") if top.is_dir() else [top]:
                if path.is_file() and not path.name.startswith(".") and path.suffix != ".lock":
                    yield path


def _inside(name: str) -> Path:
    """The name of an object as a path that leads nowhere else; StoreError if it would."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise StoreError(f"names of a run's objects must not lead out of it; got {name!r}")
    return path


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
    return target
