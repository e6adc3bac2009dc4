"""Ray Jobs: this folder's code runs on a cluster."""

import logging
import os
import secrets
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import requests
from ray._private.runtime_env.packaging import (
    GCS_STORAGE_MAX_SIZE,
    _dir_travel,
    _get_excludes,
)
from ray.exceptions import AuthenticationError

from vamf.cluster.dashboard import brief, connect, default_address, environment, without
from vamf.store import Store
from vamf.tracking import provenance
from vamf.tracking.reasons import where
from vamf.tracking.run import relative

JOBS = ("train", "tune", "evaluate", "sample", "bench")
"""What may run: ``python -m jobs.<name>``."""

KEEPING = ("train", "tune")
"""Those that leave runs in a folder."""

PLACES = ("--storage", "--resume")
"""The options that name it."""

EXCLUDES = (
    *(".git", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"),
    *("*.egg-info", "*.whl"),
    # Anchored, as vamf/data is code.
    *("/runs", "/data", "/checkpoints", "/mlruns", "/mlartifacts", "/mlflow.db", "/uv.lock"),
)
"""What stays here, as lines of a .gitignore; .gitignore and .rayignore files count besides."""

STOP_S = 60
"""Seconds that a job which is stopped has to end its runs, of which Ray gives three."""

SIZE_LIMIT = GCS_STORAGE_MAX_SIZE
"""The largest folder, in bytes, that Ray's head node takes."""


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
    """A job: what runs, where, and what it needs.

    Raises:
        ValueError: there is no such job, or the folder does not hold it.
    """

    command: tuple[str, ...]
    """The job's name and its own arguments: ("train", "digits", "--optim.lr", "3e-4")."""
    address: str = field(default_factory=default_address)
    """The cluster's dashboard, http://host:8265."""
    working_dir: Path = Path()
    """The folder that is uploaded: it holds vamf and jobs."""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The job's environment variables, beside the MLFLOW_* here; the cluster's users see them."""
    packages: tuple[str, ...] = ()
    """Requirements installed for this job alone, with the pip of the cluster's environment."""
    job_id: str = field(default_factory=lambda: f"raysubmit_{secrets.token_hex(8)}")
    """By which Ray knows the job."""

    def __post_init__(self) -> None:
        name = self.command[0] if self.command else ""
        if name not in JOBS:
            (nearest,) = get_close_matches(name, JOBS, n=1, cutoff=0.0)
            options = ", ".join(JOBS)
            raise ValueError(f"the job must be one of {options}; got {name!r}: {nearest!r}?")
        if not self.program.is_file():
            here = self.working_dir.resolve()
            raise ValueError(f"the working folder must hold jobs/{name}.py; got {here}")
        if name in KEEPING:
            self._check_place(self.command[1:])

    def _check_place(self, arguments: tuple[str, ...]) -> None:
        """What a job leaves in its working folder is deleted after it."""
        words = [word for argument in arguments for word in argument.split("=", 1)]
        named = [words[at + 1 :][:1] for at, word in enumerate(words) if word in PLACES]
        given = "".join(named[-1]) if named else ""
        store = Store.of(given) is not None
        if not store and not given.startswith(("/", "file:///")):
            raise ValueError(
                f"{self.command[0]} needs --storage FOLDER, an absolute one that all nodes see, or "
                "the address of an object store, as Ray deletes the folder that a job runs in; "
                f"got {given or 'none'}"
            )
        self._check_tracking(words)
        if store and not any(w == "--tracking" for w in words) and not self._knows_mlflow:
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
    def _knows_mlflow(self) -> bool:
        return "MLFLOW_TRACKING_URI" in self.variables

    @property
    def entrypoint(self) -> str:
        """The command line that runs on the cluster."""
        name, *arguments = self.command
        return shlex.join(["python", "-m", f"jobs.{name}", *arguments])

    @property
    def variables(self) -> dict[str, str]:
        """All environment variables of the job."""
        mlflow = {key: value for key, value in os.environ.items() if key.startswith("MLFLOW_")}
        ray = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}
        return {**ray, **mlflow, **self.env}

    @property
    def runtime_env(self) -> dict[str, object]:
        """What Ray makes of this: uploads, variables, packages."""
        packages = {"uv": list(self.packages)} if self.packages else {}
        return {
            "working_dir": str(self.working_dir.resolve()),
            "excludes": list(EXCLUDES),
            "env_vars": {**provenance.of_job(self.program, self.job_id), **self.variables},
            **packages,
        }

    @property
    def program(self) -> Path:
        """The file that the job runs."""
        return self.working_dir.resolve() / "jobs" / f"{self.command[0]}.py"


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
        problem = f"Ray at {where(submission.address)} must take the job; got {brief(error)}"
        raise ValueError(without(problem, submission.variables.values())) from None


def uploaded(folder: Path) -> dict[Path, int]:
    """The files that are uploaded, and their sizes in bytes."""
    sizes: dict[Path, int] = {}

    def visit(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(root)] = path.stat().st_size

    root = folder.resolve()
    quiet = logging.Logger("quiet", logging.CRITICAL)
    _dir_travel(root, [_get_excludes(root, list(EXCLUDES))], visit, True, quiet)
    return sizes


def check_size(folder: Path) -> None:
    """Refuses a folder that Ray would refuse only after packing it.

    Raises:
        ValueError: it is too large; the message lists the ten largest files.
    """
    sizes = uploaded(folder)
    total = sum(sizes.values())
    if total < SIZE_LIMIT:
        return
    largest = sorted(sizes, key=lambda path: -sizes[path])[:10]
    listing = "".join(f"\n  {sizes[path] / 2**20:8.1f} MiB  {path}" for path in largest)
    raise ValueError(
        f"an upload must stay below {SIZE_LIMIT / 2**20:.0f} MiB; got {total / 2**20:.0f} MiB in "
        f"{folder.resolve()}; name what may stay here in .rayignore. The largest files:{listing}"
    )
