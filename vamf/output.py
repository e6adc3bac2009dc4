"""What is printed may be lost on its way, but never ends or repeats work."""

import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

from tqdm import tqdm


def say(line: str, *, error: bool = False) -> None:
    """Prints a line at once, above a progress bar if there is one, on stdout or stderr.

    What the terminal's encoding lacks is written as an escape; what cannot be written is dropped.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is None:
        return
    with suppress(OSError, ValueError):  # a reader that is gone, a full disk, a closed file
        try:
            tqdm.write(line, file=stream)
        except UnicodeEncodeError:
            tqdm.write(line.encode("ascii", "backslashreplace").decode(), file=stream)
        stream.flush()


def forgive() -> None:
    """Has this program go on when its output cannot be encoded, or its reader is gone.

    With ``| head`` a training goes on to its end, and ends with its own status.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8"))
        elif (descriptor := _descriptor(stream)) is not None:
            setattr(sys, name, _forgiving(stream, descriptor))
    tolerate()


def tolerate() -> None:
    """Has stdout and stderr take every character: those that their encoding lacks as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


class _Sink(io.FileIO):
    """A descriptor that takes everything: what cannot be written is dropped."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:  # such as EPIPE; ENOSPC where the output is a file; EIO of a lost terminal
            return memoryview(data).nbytes


def _descriptor(stream: TextIO) -> int | None:
    with suppress(OSError, ValueError, AttributeError):  # a notebook's, a test's
        return stream.fileno() if isinstance(stream, io.TextIOWrapper) else None
    return None


def _forgiving(stream: TextIO, descriptor: int) -> TextIO:
    """The same stream, with its own buffering, into a sink."""
    assert isinstance(stream, io.TextIOWrapper)
    stream.flush()
    sink = _Sink(descriptor, "w", closefd=False)
    unbuffered = isinstance(stream.buffer, io.RawIOBase)  # python -u
    return io.TextIOWrapper(
        sink if unbuffered else io.BufferedWriter(sink),
        encoding=stream.encoding,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
