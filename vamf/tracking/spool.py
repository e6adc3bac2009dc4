"""A queue of events in a folder: it outlives its process, and another may empty it."""

import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vamf.files import make_folder

PIECE = 1 << 18
"""Bytes that ``Spool.peek`` reads at once, unless a single event is longer."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something to send, stamped with the moment at which it happened."""

    kind: str
    data: dict[str, Any]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    time_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)


@dataclass(frozen=True, kw_only=True)
class Queued:
    """An event, and the offset in the queue's file that acknowledges it and all before it."""

    event: Event
    end: int


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Holds the lock of a file, which dies with its process; yields whether it was got."""
    with path.open("a+b") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass  # a file system without locks: a run's events then need a single writer
        yield True


class Spool:
    """The queue: appended at the end, acknowledged from the front, in a folder of its own.

    ``events.jsonl`` holds the events, ``sent`` how many of its bytes are acknowledged, ``files``
    the copies of files that were waiting, ``rejected.jsonl`` what was refused for good. Methods
    raise OSError where the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._events = folder / "events.jsonl"
        self._sent = folder / "sent"
        self._name = uuid.uuid4().hex
        self.rejected = folder / "rejected.jsonl"

    def append(self, event: Event) -> None:
        """Puts an event at the end."""
        make_folder(self.folder, above=1)
        with self._exclusive(), self._events.open("a+b") as file:
            # A process killed while it wrote has left half a line: it must not spoil this one.
            size = file.seek(0, os.SEEK_END)
            if size == 0:
                self._sent.unlink(missing_ok=True)
            file.seek(max(size - 1, 0))
            torn = file.read(1) not in (b"", b"\n")
            file.write(b"\n" * torn + json.dumps(asdict(event)).encode() + b"\n")

    def peek(self) -> list[Queued]:
        """The first events that wait, in order; nothing is removed."""
        if not self._events.exists():
            return []
        found: list[Queued] = []
        with self._exclusive(), self._events.open("rb") as file:
            position = file.seek(self._offset())
            while not found and (lines := file.readlines(PIECE)):
                for line in lines:
                    position += len(line)
                    if event := _parse(line):
                        found.append(Queued(event=event, end=position))
        return found

    def acknowledge(self, end: int) -> None:
        """Removes the events up to an offset; the file is emptied once nothing waits in it."""
        with self._exclusive():
            if end >= self._events.stat().st_size:
                # In this order: an offset beyond the end reads as 0, and the next append resets it.
                os.truncate(self._events, 0)
                end = 0
            fresh = self._sent.with_suffix(".new")
            fresh.write_text(str(end))
            fresh.replace(self._sent)

    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self.peek()

    def waiting(self) -> int:
        """How many events wait."""
        if not self._events.exists():
            return 0
        with self._exclusive(), self._events.open("rb") as file:
            file.seek(self._offset())
            return sum(_parse(line) is not None for line in file)

    def refused(self) -> int:
        """How many events were refused for good."""
        return len(self.rejected.read_bytes().splitlines()) if self.rejected.exists() else 0

    @contextmanager
    def sender(self) -> Iterator[tuple[bool, bool]]:
        """Makes this the only sender; yields (it is, another has sent since this one last did)."""
        make_folder(self.folder, above=1)
        with locked(self.folder / "sender.lock", wait=False) as mine:
            last = self.folder / "sender"
            changed = mine and (not last.exists() or last.read_text() != self._name)
            if changed:
                with suppress(OSError):  # a full disk empties the file: all others will read anew
                    last.write_text(self._name)
            yield mine, changed

    def still(self) -> AbstractContextManager[bool]:
        """While it lasts nobody adds or removes events: the files can be copied."""
        return self._exclusive()

    def reject(self, event: Event, reason: str) -> None:
        """Writes down an event that was refused for good, with its files if they were copied."""
        with self.rejected.open("a") as file:
            file.write(json.dumps({"reason": reason, **asdict(event)}) + "\n")

    def reference(self, path: Path) -> str:
        """How an event names a file: from the queue on if both are in one run, which may move."""
        path, run = path.resolve(), self.folder.resolve().parents[1]
        inside = path.is_relative_to(run)
        return os.path.relpath(path, self.folder.resolve()) if inside else str(path)

    def keep(self, event: Event) -> None:
        """Copies an event's file or folder beside the queue, as it has to wait."""
        path, copy = self._original(event), self._copy(event)
        if not copy.exists() and path.exists():
            # Copied under another name first: half a copy must not pass for the file.
            half = copy.parent / "half"
            half.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, half)
            half.rename(copy)

    def file(self, event: Event) -> Path:
        """Where an event's file is now: the copy, if one was made."""
        copy = self._copy(event)
        return copy if copy.exists() else self._original(event)

    def drop(self, event: Event) -> None:
        """Deletes the copies made for an event."""
        shutil.rmtree(self.folder / "files" / event.id, ignore_errors=True)

    def _original(self, event: Event) -> Path:
        return self.folder / event.data["path"]  # which may be absolute

    def _copy(self, event: Event) -> Path:
        return self.folder / "files" / event.id / Path(event.data["path"]).name

    def _exclusive(self) -> AbstractContextManager[bool]:
        return locked(self.folder / "events.lock", wait=True)

    def _offset(self) -> int:
        sent = int(self._sent.read_text() or 0) if self._sent.exists() else 0
        return sent if sent <= self._events.stat().st_size else 0


def _parse(line: bytes) -> Event | None:
    try:
        return Event(**json.loads(line))
    except (ValueError, TypeError):
        return None  # half a line, of a process killed while it wrote
