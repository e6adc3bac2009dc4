"""A queue of events in a folder, which another process can read after its own has ended."""

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

from vamf.file_lock import locked
from vamf.files import make_folder
from vamf.run_layout import (
    EVENTS,
    EVENTS_LOCK,
    QUEUED_FILES,
    REJECTED,
    SENDER,
    SENDER_LOCK,
    SENT,
)

PIECE = 1 << 18
"""Bytes that ``EventQueue.peek`` reads at once; more if one event is longer."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something to send, with the time at which it happened."""

    kind: str
    data: dict[str, Any]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    time_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)


@dataclass(frozen=True, kw_only=True)
class Queued:
    """An event, and the offset in the queue's file that acknowledges it and all before it."""

    event: Event
    end: int


class EventQueue:
    """A queue in a folder of its own: appended at the end, acknowledged from the front.

    ``events.jsonl`` has the events, ``sent`` the number of its bytes that are acknowledged,
    ``files`` copies of files that are to be sent, ``rejected.jsonl`` the events that were refused.
    Methods raise OSError if the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._events = folder / EVENTS
        self._sent = folder / SENT
        self._name = uuid.uuid4().hex
        self.rejected = folder / REJECTED

    def append(self, event: Event) -> None:
        """Appends an event."""
        make_folder(self.folder, above=1)
        with self._exclusive(), self._events.open("a+b") as file:
            # A killed process may have left an incomplete last line.
            size = file.seek(0, os.SEEK_END)
            if size == 0:
                self._sent.unlink(missing_ok=True)
            file.seek(max(size - 1, 0))
            torn = file.read(1) not in (b"", b"\n")
            file.write(b"\n" * torn + json.dumps(asdict(event)).encode() + b"\n")

    def peek(self) -> list[Queued]:
        """The first events in the queue, in order; none is removed."""
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
        """Removes the events up to an offset; truncates the file once the queue is empty."""
        with self._exclusive():
            if end >= self._events.stat().st_size:
                # In this order: an offset beyond the end reads as 0, and the next append resets it.
                os.truncate(self._events, 0)
                end = 0
            fresh = self._sent.with_suffix(".new")
            fresh.write_text(str(end))
            fresh.replace(self._sent)

    def empty(self) -> bool:
        """Whether the queue is empty."""
        return not self.peek()

    def waiting(self) -> int:
        """The number of events in the queue."""
        if not self._events.exists():
            return 0
        with self._exclusive(), self._events.open("rb") as file:
            file.seek(self._offset())
            return sum(_parse(line) is not None for line in file)

    def refused(self) -> int:
        """The number of events that were refused."""
        return len(self.rejected.read_bytes().splitlines()) if self.rejected.exists() else 0

    @contextmanager
    def sender(self) -> Iterator[tuple[bool, bool]]:
        """Makes this the only sender; yields (whether it is, whether another has sent since)."""
        make_folder(self.folder, above=1)
        with locked(self.folder / SENDER_LOCK, wait=False) as mine:
            last = self.folder / SENDER
            changed = mine and (not last.exists() or last.read_text() != self._name)
            if changed:
                with suppress(
                    OSError
                ):  # a full disk leaves the file empty: the next sender refreshes
                    last.write_text(self._name)
            yield mine, changed

    def frozen(self) -> AbstractContextManager[bool]:
        """Within the block no process adds or removes events: the files can be copied."""
        return self._exclusive()

    def reject(self, event: Event, reason: str) -> None:
        """Records an event that was refused; copies of its files stay."""
        with self.rejected.open("a") as file:
            file.write(json.dumps({"reason": reason, **asdict(event)}) + "\n")

    def reference(self, path: Path) -> str:
        """How an event names a file: relative to the queue if both are in one run's folder."""
        path, run = path.resolve(), self.folder.resolve().parents[1]
        inside = path.is_relative_to(run)
        return os.path.relpath(path, self.folder.resolve()) if inside else str(path)

    def copy_file(self, event: Event) -> None:
        """Copies the file or folder of a waiting event to the queue's folder."""
        path, copy = self._original(event), self._copy(event)
        if not copy.exists() and path.exists():
            # Copied under another name first, so that an incomplete copy is not used.
            half = copy.parent / "half"
            half.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(half, ignore_errors=True)  # a killed process may have left a folder
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, half)
            half.rename(copy)

    def file(self, event: Event) -> Path:
        """The path of an event's file: of the copy, if there is one."""
        copy = self._copy(event)
        return copy if copy.exists() else self._original(event)

    def delete_copy(self, event: Event) -> None:
        """Deletes the copy of an event's file."""
        shutil.rmtree(self.folder / QUEUED_FILES / event.id, ignore_errors=True)

    def _original(self, event: Event) -> Path:
        return self.folder / event.data["path"]  # which may be absolute

    def _copy(self, event: Event) -> Path:
        return self.folder / QUEUED_FILES / event.id / Path(event.data["path"]).name

    def _exclusive(self) -> AbstractContextManager[bool]:
        return locked(self.folder / EVENTS_LOCK, wait=True)

    def _offset(self) -> int:
        sent = int(self._sent.read_text() or 0) if self._sent.exists() else 0
        return sent if sent <= self._events.stat().st_size else 0


def _parse(line: bytes) -> Event | None:
    try:
        return Event(**json.loads(line))
    except (ValueError, TypeError):
        return None  # an incomplete line of a process that was killed
