"""Who runs which code: what a run records about where it came from."""

import getpass
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

COMMIT, JOB = "VAMF_GIT_COMMIT", "VAMF_JOB_ID"
"""Environment variables in which ``jobs.submit`` hands on what nobody knows on the cluster."""


def tags() -> dict[str, str]:
    """The tags that say which code a run is of and, if it was submitted, as which Ray job."""
    commit, job = git_commit() or "unknown", os.environ.get(JOB)
    found = {"git.commit": commit, **({"ray.job": job} if job else {})}
    if commit != "unknown":
        found["mlflow.source.git.commit"] = commit.removesuffix("-dirty")
    return found


def git_commit() -> str | None:
    """The commit of this code, with ``-dirty`` where its files differ or new ones are there.

    None outside git, and where git knows nothing of this file: a package may be installed inside
    another repository.
    """
    return os.environ.get(COMMIT) or commit_of(Path(__file__))


def commit_of(file: Path) -> str | None:
    """The same of any file's repository."""
    try:
        _git("ls-files", "--error-unmatch", file.name, folder=file.parent)
        commit = _git("rev-parse", "HEAD", folder=file.parent)
        return f"{commit}-dirty" if _git("status", "--porcelain", folder=file.parent) else commit
    except (OSError, subprocess.SubprocessError):
        return None


def handed_on(file: Path, job_id: str) -> Mapping[str, str]:
    """The environment variables that tell a job its id, and by a file of its code the commit."""
    return {COMMIT: commit_of(file) or "unknown", JOB: job_id}


def user() -> str:
    """The name of the user; "unknown" for a container's user id without one."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _git(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=5, check=True
    )
    return done.stdout.strip()
