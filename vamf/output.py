"""Prints without letting errors of printing end the program."""

import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

from tqdm import tqdm


def say(line: str, *, error: bool = False) -> None:
    """Prints a line at once to stdout or stderr, above a progress bar if there is one.

    Characters that the encoding lacks are escaped; output that cannot be written is dropped.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is None:
        return
    with suppress(OSError, ValueError):  # the reader ended, the disk is full, or the file is closed
        try:
            tqdm.write(line, file=stream)
        except UnicodeEncodeError:
            tqdm.write(line.encode("ascii", "backslashreplace").decode(), file=stream)
        stream.flush()


def ignore_write_errors() -> None:
    """Lets this program continue if its output cannot be encoded, or if its reader has ended.

    With ``| head`` a training run continues to its end, and keeps its own exit status.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the process that started this one
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8"))
        elif (descriptor := _descriptor(stream)) is not None:
            setattr(sys, name, _forgiving(stream, descriptor))
    escape_unencodable()


def escape_unencodable() -> None:
    """Makes stdout and stderr escape characters that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


class _Sink(io.FileIO):
    """A file that drops data that cannot be written."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:  # such as EPIPE; ENOSPC where the output is a file; EIO of a lost terminal
            return memoryview(data).nbytes


def _descriptor(stream: TextIO) -> int | None:
    with suppress(OSError, ValueError, AttributeError):  # in a notebook or a test
        return stream.fileno() if isinstance(stream, io.TextIOWrapper) else None
    return None


def _forgiving(stream: TextIO, descriptor: int) -> TextIO:
    """The same stream, with the same buffering, but dropping data that cannot be written."""
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
