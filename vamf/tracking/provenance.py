"""Who runs which code: what a run records about where it came from."""

import getpass
import subprocess
from pathlib import Path


def git_commit() -> str | None:
    """The commit of this code, with ``-dirty`` where files differ from it; None outside git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return f"{commit}-dirty" if _git("status", "--porcelain", "-uno") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def user() -> str:
    """The name of the user; "unknown" for a container's user id without one."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=5,
        check=True,
    )
    return done.stdout.strip()
