"""The manifest of a checkpoint: the sizes and checksums of its files as they were written."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vamf.files import sha256
from vamf.run_layout import MANIFEST


class _Summed:
    """A writable file that computes a checksum and keeps the error of a failed write.

    On a full disk ``torch.save`` itself reports only an unexpected file position.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.sum, self.size = hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.sum.update(data)
        self.size += written
        return written

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def write_tensors(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Calls ``torch.save``; returns the manifest's entry, computed from the data before writing.

    Raises OSError if the file cannot be written.
    """
    file = _Summed(path)
    try:
        torch.save(dict(state), file)  # type: ignore[arg-type]
        file.close()
    except RuntimeError as error:
        raise file.error or error from None
    return {"bytes": file.size, "sha256": file.sum.hexdigest()}


def entry(path: Path) -> dict[str, Any]:
    """The manifest's entry for an existing file."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def damage(folder: Path) -> str | None:
    """A short description of how a folder's files differ from its manifest; None if they do not.

    All files must be in the folder itself: paths that point outside it, and links, are refused
    without being read. A folder of an earlier version, which has no manifest, is accepted unless it
    contains links.
    """
    manifest = folder / MANIFEST
    try:
        if links := sorted(path.name for path in folder.iterdir() if path.is_symlink()):
            return f"{links[0]}: is a link"
        if not manifest.exists():
            return None
        entries: dict[str, dict[str, Any]] = json.loads(manifest.read_text())
        if outside := [name for name in entries if Path(name).name != name]:
            return f"{MANIFEST}: names {outside[0]!r}, which is not a file in its folder"
        names = sorted(entries.keys() | {path.name for path in folder.iterdir()} - {MANIFEST})
        found = ((name, _difference(folder / name, entries[name])) for name in names)
        return next((f"{name}: {what}" for name, what in found if what), None)
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        return f"{MANIFEST}: {error}"


def _difference(path: Path, expected: Mapping[str, Any]) -> str | None:
    if not path.exists():
        return "is missing"
    size = path.stat().st_size
    if size != expected["bytes"]:
        return f"{size} of {expected['bytes']} bytes"
    return None if sha256(path) == expected["sha256"] else "its checksum differs"
