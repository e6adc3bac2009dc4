"""The user, program and git commit that a run records."""

import getpass
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

COMMIT, JOB, PROGRAM = "VAMF_GIT_COMMIT", "VAMF_JOB_ID", "VAMF_PROGRAM"
"""Environment variables that pass these facts to processes on other machines."""


def tags() -> dict[str, str]:
    """MLflow tags with a run's code and, if it was submitted, its Ray job."""
    commit, job = git_commit() or "unknown", os.environ.get(JOB)
    found = {"git.commit": commit, "mlflow.source.name": program()}
    if job:
        found["ray.job"] = job
    if commit != "unknown":
        found["mlflow.source.git.commit"] = commit.removesuffix("-dirty")
    return found


def git_commit() -> str | None:
    """The commit of this code, with ``-dirty`` if there are changed or new files.

    None outside git, or if git does not track this file: a package may be installed inside another
    repository.
    """
    return os.environ.get(COMMIT) or commit_of(Path(__file__))


def commit_of(file: Path) -> str | None:
    """The commit of a file's repository, as ``git_commit`` returns it."""
    try:
        _git("ls-files", "--error-unmatch", file.name, folder=file.parent)
        commit = _git("rev-parse", "HEAD", folder=file.parent)
        return f"{commit}-dirty" if _git("status", "--porcelain", folder=file.parent) else commit
    except (OSError, subprocess.SubprocessError):
        return None


def program() -> str:
    """The name of the program that was started, such as ``train.py``."""
    return os.environ.get(PROGRAM) or Path(sys.argv[0]).name


def job_variables(file: Path, job_id: str) -> Mapping[str, str]:
    """The environment variables of a submitted job: the commit of its code, and its id."""
    return {COMMIT: commit_of(file) or "unknown", JOB: job_id}


def own_variables() -> Mapping[str, str]:
    """The environment variables that give another process the tags of this one."""
    known = {COMMIT: git_commit() or "unknown", PROGRAM: program()}
    return known | ({JOB: os.environ[JOB]} if JOB in os.environ else {})


def user() -> str:
    """The name of the user; "unknown" if the user id has no name, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _git(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=5, check=True
    )
    return done.stdout.strip()
