"""Submits a job, with the code in a folder, to a Ray cluster."""

import os
import secrets
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import requests
from ray.exceptions import AuthenticationError

from vamf import commands
from vamf.cluster.submission.dashboard import (
    connect,
    default_address,
    environment,
    first_and_last_line,
    without,
)
from vamf.compat import ray as compat
from vamf.redact import without_credentials
from vamf.run_layout import ARTIFACTS, DATABASE
from vamf.store import Store
from vamf.tracking import provenance
from vamf.tracking.run import relative

JOBS = ("train", "tune", "evaluate", "sample", "bench")
"""The programs that can be submitted: ``vamf <name>``."""

WITH_STORAGE = ("train", "tune")
"""Those that write runs to a storage."""

STORAGE_OPTIONS = ("--storage", "--resume")
"""The options that name the storage."""

EXCLUDES = (
    *(".git", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"),
    *("*.egg-info", "*.whl"),
    # Anchored, as vamf/data is code.
    *("/runs", "/data", "/checkpoints", "/mlruns", f"/{ARTIFACTS}", f"/{DATABASE}", "/uv.lock"),
)
"""What is not uploaded, as lines of a .gitignore, besides .gitignore and .rayignore files."""

WITH_PACKAGE = {"/data": ("/data/*", "!/data/*.py")}
"""What replaces lines of EXCLUDES if the package is uploaded too, whose data/ is code."""

STOP_S = 60
"""Seconds that a stopped job has to end its runs; Ray's default is 3."""


def variables(items: Iterable[str]) -> dict[str, str]:
    """Environment variables written NAME=VALUE, or NAME for its value here.

    Raises:
        ValueError: a NAME without a value is not set here.
    """
    found = {}
    for item in items:
        name, given, value = item.partition("=")
        if not given and name not in os.environ:
            raise ValueError(f"an environment variable must have a value here; got {name}")
        found[name] = value if given else os.environ[name]
    return found


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job to submit: its command, cluster, code and environment.

    Raises:
        ValueError: there is no such job, or the folder does not hold it.
    """

    command: tuple[str, ...]
    """The job's name and its own arguments: ("train", "digits", "--optim.lr", "3e-4")."""
    address: str = field(default_factory=default_address)
    """The cluster's dashboard, http://host:8265."""
    working_dir: Path = Path()
    """The folder that is uploaded; it holds vamf and jobs, unless vamf is an installed wheel."""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The job's environment variables besides MLFLOW_*; the cluster's users can read them."""
    packages: tuple[str, ...] = ()
    """Requirements installed for this job alone, with the pip of the cluster's environment."""
    job_id: str = field(default_factory=lambda: f"raysubmit_{secrets.token_hex(8)}")
    """The job's id in Ray."""

    def __post_init__(self) -> None:
        name = self.command[0] if self.command else ""
        if name not in JOBS:
            (nearest,) = get_close_matches(name, JOBS, n=1, cutoff=0.0)
            options = ", ".join(JOBS)
            raise ValueError(f"the job must be one of {options}; got {name!r}: {nearest!r}?")
        if not self.program.is_file():
            here = self.working_dir.resolve()
            raise ValueError(f"the working folder must hold jobs/{name}.py; got {here}")
        self._check_files()
        if name in WITH_STORAGE:
            self._check_storage(self.command[1:])

    def _check_files(self) -> None:
        """Raises ValueError for a user's own module that is not uploaded."""
        words = (word.rpartition("=")[2].strip("\"'") for word in self.command[1:])
        for name in (word.partition(":")[0] for word in words):
            if not name.endswith(".py"):
                continue
            if Path(name).is_absolute() or not (self.working_dir / name).is_file():
                raise ValueError(
                    "a file of your own must be in the working folder, which is uploaded, and be "
                    f"named relative to it; got {name}"
                )

    def _check_storage(self, arguments: tuple[str, ...]) -> None:
        """Raises ValueError if the storage is in the working folder, which Ray deletes."""
        words = [word for argument in arguments for word in argument.split("=", 1)]
        named = [words[at + 1 :][:1] for at, word in enumerate(words) if word in STORAGE_OPTIONS]
        given = "".join(named[-1]) if named else ""
        store = Store.of(given) is not None
        if not store and not given.startswith(("/", "file:///")):
            raise ValueError(
                f"{self.command[0]} needs --storage FOLDER, an absolute one that all nodes see, or "
                "the address of an object store, as Ray deletes the folder that a job runs in; "
                f"got {given or 'none'}"
            )
        self._check_tracking(words)
        if store and not any(w == "--tracking" for w in words) and not self._has_mlflow_address:
            raise ValueError(
                "with an object store MLFLOW_TRACKING_URI must be the address of a server, as "
                "MLflow's own file would be in the folder that Ray deletes"
            )

    def _check_tracking(self, words: list[str]) -> None:
        """Raises ValueError if MLflow's file would be in the folder that Ray deletes."""
        given = [words[at + 1 :][:1] for at, word in enumerate(words) if word == "--tracking"]
        uri = "".join(given[-1]) if given else self.variables.get("MLFLOW_TRACKING_URI", "")
        if relative(uri):
            raise ValueError(
                "MLflow's address must be a server's, or name an absolute path that all nodes see, "
                f"as Ray deletes the folder that a job runs in; got {uri}"
            )

    @property
    def _has_mlflow_address(self) -> bool:
        return "MLFLOW_TRACKING_URI" in self.variables

    @property
    def entrypoint(self) -> str:
        """The command line that runs on the cluster."""
        name, *arguments = self.command
        if self.takes_package:
            return shlex.join(["python", "-m", commands.PACKAGE.name, name, *arguments])
        return shlex.join(["python", "-m", commands.module(name, installed=False), *arguments])

    @property
    def takes_package(self) -> bool:
        """Whether the installed package is uploaded, as the folder holds neither vamf nor jobs."""
        folder = self.working_dir.resolve()
        parts = (folder / "jobs", folder / commands.PACKAGE.name)
        return commands.INSTALLED and not any(part.exists() for part in parts)

    @property
    def variables(self) -> dict[str, str]:
        """All environment variables of the job."""
        mlflow = {key: value for key, value in os.environ.items() if key.startswith("MLFLOW_")}
        ray = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}
        return {**ray, **mlflow, **self.env}

    @property
    def runtime_env(self) -> dict[str, object]:
        """Ray's runtime environment: uploads, variables, packages."""
        packages: dict[str, object] = {"uv": list(self.packages)} if self.packages else {}
        excludes: tuple[str, ...] = EXCLUDES
        if self.takes_package:
            packages["py_modules"] = [str(commands.PACKAGE)]
            excludes = tuple(x for line in EXCLUDES for x in WITH_PACKAGE.get(line, (line,)))
        return {
            "working_dir": str(self.working_dir.resolve()),
            "excludes": list(excludes),
            "env_vars": {**provenance.job_variables(self.program, self.job_id), **self.variables},
            **packages,
        }

    @property
    def program(self) -> Path:
        """The file that the job runs."""
        above = commands.PACKAGE if self.takes_package else self.working_dir.resolve()
        return above / "jobs" / f"{self.command[0]}.py"


def submit(submission: Submission) -> str:
    """Uploads the folder and starts the job; returns its id.

    Raises:
        ValueError: the folder is too large, or the cluster does not answer or refuses.
    """
    check_size(submission.working_dir)
    client = connect(submission.address)
    try:
        with environment(RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES=""):  # they are in EXCLUDES
            return client.submit_job(
                entrypoint=submission.entrypoint,
                submission_id=submission.job_id,
                runtime_env=submission.runtime_env,
            )
    except (RuntimeError, AuthenticationError, requests.RequestException) as error:
        address, got = without_credentials(submission.address), first_and_last_line(error)
        problem = f"Ray at {address} must take the job; got {got}"
        raise ValueError(without(problem, submission.variables.values())) from None


def uploaded(folder: Path) -> dict[Path, int]:
    """The files that are uploaded, and their sizes in bytes."""
    sizes: dict[Path, int] = {}

    def visit(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(root)] = path.stat().st_size

    root = folder.resolve()
    compat.visit_uploaded(root, EXCLUDES, visit)
    return sizes


def check_size(folder: Path) -> None:
    """Refuses a folder that is too large, before Ray packs and refuses it.

    Raises:
        ValueError: it is too large; the message lists the ten largest files.
    """
    sizes = uploaded(folder)
    total, limit = sum(sizes.values()), compat.upload_limit()
    if total < limit:
        return
    largest = sorted(sizes, key=lambda path: -sizes[path])[:10]
    listing = "".join(f"\n  {sizes[path] / 2**20:8.1f} MiB  {path}" for path in largest)
    raise ValueError(
        f"an upload must stay below {limit / 2**20:.0f} MiB; got {total / 2**20:.0f} MiB in "
        f"{folder.resolve()}; name what may stay here in .rayignore. The largest files:{listing}"
    )
