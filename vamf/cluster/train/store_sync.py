"""Copies a run's folder to an object store in the background, and back."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vamf.errors import StoreError
from vamf.files import write_whole
from vamf.run_layout import (
    CHECKPOINTS,
    EVENTS,
    LANDSCAPE,
    LOCK,
    MANIFEST,
    RAY,
    SAMPLES,
    SPOOL,
    STEPS,
    UPLOADING,
)
from vamf.store import Store
from vamf.tracking.event_queue import EventQueue
from vamf.training.checkpoints.remote_checkpoints import complete, fetch_newest
from vamf.training.checkpoints.resume import NoteRecorder

PAUSES_S = (1.0, 4.0, 15.0)
"""Seconds to wait before each retry."""

OWN = (CHECKPOINTS, RAY, UPLOADING)
"""Folders of a run that are not mirrored file by file."""

PICTURES = (SAMPLES, LANDSCAPE)
"""Folders of a run that are not needed to resume it."""


class StoreSync:
    """A working copy of a run's folder, and the object store that holds the run.

    Checkpoints are uploaded one after the other, the manifest last: a checkpoint without a manifest
    does not exist. Then those that the folder no longer has are deleted in the store. All other
    files are copied as they are. Only one process at a time may write.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self._known: dict[str, tuple[int, int]] = {}
        self._there: set[str] = set()
        self._wake, self._ending = threading.Event(), threading.Event()
        self._note: NoteRecorder = lambda name, text: None
        self._failure: StoreError | None = None

    def clear(self) -> None:
        """Deletes what an earlier process left in the folder; only the store's files count."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._known.clear()

    def pull(self) -> None:
        """Downloads the run's files, without checkpoints and pictures."""
        for name in self.store.names():
            if name.split("/")[0] not in (*OWN, *PICTURES):
                path = self.folder / inside(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, self.store.read(name))
                self._known[name] = stamp(path)

    def push(self) -> None:
        """Uploads all changed files, without checkpoints, and deletes those that are gone."""
        now, contents = self._changed()
        for name, content in contents.items():
            self.store.write(name, content)
            self._known[name] = now[name]
        for name in self._known.keys() - now.keys():
            self.store.delete(name)
            del self._known[name]

    def fetch(self) -> None:
        """Downloads the checkpoints to resume from; removes damaged ones from the store."""
        for name in fetch_newest(self.store, self.folder / CHECKPOINTS):
            self.store.delete(f"{CHECKPOINTS}/{name}/{MANIFEST}")
        self._there = set(complete(self.store))

    def changed(self) -> None:
        """Starts an upload of checkpoints and files; does not wait for it."""
        self._wake.set()

    @contextmanager
    def following(self, note: NoteRecorder) -> Iterator[None]:
        """Uploads in the background until the block ends, and waits until all is in the store.

        A failed upload is retried, then noted, and retried with the next checkpoint. Raises
        StoreError if the last one fails.
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
            before, self._failure = self._failure, self._sync_with_retries()
            if self._failure is not None and before is None:
                self._note("storage.behind", f"{self._failure}; training continues")

    def _sync_with_retries(self) -> StoreError | None:
        for pause in (*PAUSES_S, None):
            try:
                self._sync()
                return None
            except Exception as error:  # of any kind: no loss goes unnoticed
                if pause is None:
                    return error if isinstance(error, StoreError) else StoreError(repr(error))
                time.sleep(pause)
        return None

    def _sync(self) -> None:
        while True:
            missing = self._missing()
            self.push()  # before each of them: what was logged up to a checkpoint must be with it
            if not missing:
                return
            if self._upload(missing[-1]):
                self._prune(missing[-1])

    def _missing(self) -> list[str]:
        """The checkpoints that the store lacks, oldest first."""
        return sorted(self._here() - self._there)

    def _here(self) -> set[str]:
        return {path.name for path in (self.folder / CHECKPOINTS).glob(STEPS)}

    def _upload(self, name: str) -> bool:
        """Uploads a checkpoint; False if it was deleted from the folder meanwhile."""
        source, aside = self.folder / CHECKPOINTS / name, self.folder / UPLOADING
        target = self.store / CHECKPOINTS / name
        shutil.rmtree(aside, ignore_errors=True)
        try:
            # Hard links: the folder may delete the checkpoint during the upload.
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
        """The stamps of the folder's files, and the contents of those that have changed."""
        with ExitStack() as stack:
            for queue in self.folder.glob(f"{SPOOL}/*/{EVENTS}"):
                stack.enter_context(EventQueue(queue.parent).frozen())
            now = {path.relative_to(self.folder).as_posix(): path for path in self._files()}
            stamps = {name: stamp(path) for name, path in now.items()}
            changed = (name for name in now if self._known.get(name) != stamps[name])
            return stamps, {name: now[name].read_bytes() for name in changed}

    def _files(self) -> Iterator[Path]:
        tops = (path for path in self.folder.iterdir() if path.name not in OWN)
        for top in tops:
            for path in top.rglob("*") if top.is_dir() else [top]:
                if path.is_file() and not path.name.startswith(".") and path.suffix != LOCK:
                    yield path


def inside(name: str) -> Path:
    """The name of an object as a path within the folder; StoreError if it is not."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise StoreError(f"names of a run's objects must not lead out of it; got {name!r}")
    return path


def stamp(path: Path) -> tuple[int, int]:
    """The time and size by which a changed file is known."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
    return target
