"""What the tests leave behind, and the ends of the logs of what a test that failed had started."""

import os
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from helpers.machine import command
from helpers.tree import ROOT

MARK = "VAMF_TEST_SESSION"
"""The environment variable by which all processes of a session of tests are known."""


LOGS = ("said", "log", "*.log", "error.txt", "worker-*.err", "job-driver-*.log")
"""Files that tell what happened in a process that a test has started."""


def processes(mark: str) -> dict[int, str]:
    """Those of a session that are alive, by their command lines; not this one and its parents."""
    reported, found = f"{MARK}={mark}".encode(), {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in (os.getpid(), os.getppid()):
            try:
                ours = reported in (entry / "environ").read_bytes().split(b"\0")
            except OSError:  # it has ended, or is another user's
                continue
            line = command(int(entry.name))
            if ours and line and "multiprocessing.resource_tracker" not in line:  # ends with this
                found[int(entry.name)] = line
    return found


def files() -> set[str]:
    """What is in the repository without being in git, and at the top of the home folder."""
    listing = ["git", "status", "--porcelain", "--ignored", "--untracked-files=all"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    new = {line for line in listed if line.startswith(("??", "!!"))}
    ours = {line for line in new if "__pycache__" not in line and "_cache/" not in line}
    return ours | {str(path) for path in Path.home().iterdir()}


def left(mark: str, before: set[str], patience_s: float = 75.0) -> list[str]:
    """A line for each process and each file that a session leaves.

    Processes have time to end: Ray's agents take a minute after their driver was killed.
    """
    give_up = time.monotonic() + patience_s
    while (alive := processes(mark)) and time.monotonic() < give_up:
        time.sleep(0.2)
    return [f"process {pid}: {line}" for pid, line in alive.items()] + [
        f"file {name}" for name in sorted(files() - before)
    ]


def tails(folders: Iterable[Path], since: float, lines: int = 15) -> Iterator[tuple[str, str]]:
    """The last lines of the logs, in these folders, that were written to since then."""
    for folder in folders:
        for path in sorted({path for name in LOGS for path in folder.rglob(name)}):
            if path.is_file() and path.stat().st_size and path.stat().st_mtime >= since:
                with path.open("rb") as file:
                    file.seek(max(0, path.stat().st_size - 20_000))
                    text = file.read().decode(errors="replace")
                yield str(path), "\n".join(text.splitlines()[-lines:])
