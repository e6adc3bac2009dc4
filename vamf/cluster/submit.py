"""Ray Jobs: this folder's code runs on a cluster, and its log arrives here."""

import asyncio
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import requests
from aiohttp import ClientError
from ray._private.runtime_env.packaging import (
    GCS_STORAGE_MAX_SIZE,
    _dir_travel,
    _get_excludes,
)
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from vamf.store import Store
from vamf.tracking.courier import where

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

SIZE_LIMIT = GCS_STORAGE_MAX_SIZE
"""The largest folder, in bytes, that Ray's head node takes."""

HEADERS = "RAY_JOB_HEADERS"
"""Ray's own variable for HTTP headers."""

CREDENTIALS = (
    f"A token goes with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, what a proxy wants with {HEADERS}"
)

LOCAL = "http://127.0.0.1:8265"
SILENCE_S = 60.0
"""Seconds without an answer after which a job is no longer followed."""
STOP_S = 30.0
"""Seconds that a job gets to stop; Ray kills it after three."""


def default_address() -> str:
    """RAY_API_SERVER_ADDRESS, else RAY_ADDRESS, else this machine's dashboard."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    address = next((os.environ[name] for name in names if os.environ.get(name)), LOCAL)
    return LOCAL if address in ("auto", "local") else address


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

    def __post_init__(self) -> None:
        name = self.command[0] if self.command else ""
        if name not in JOBS:
            (nearest,) = get_close_matches(name, JOBS, n=1, cutoff=0.0)
            options = ", ".join(JOBS)
            raise ValueError(f"the job must be one of {options}; got {name!r}: {nearest!r}?")
        if not (self.working_dir / "jobs" / f"{name}.py").is_file():
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
        if store and not any(w == "--tracking" for w in words) and not self._knows_mlflow:
            raise ValueError(
                "with an object store MLFLOW_TRACKING_URI must be the address of a server, as "
                "MLflow's own file would be in the folder that Ray deletes"
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
        return {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", **mlflow, **self.env}

    @property
    def runtime_env(self) -> dict[str, object]:
        """What Ray makes of this: uploads, variables, packages."""
        packages = {"uv": list(self.packages)} if self.packages else {}
        return {
            "working_dir": str(self.working_dir.resolve()),
            "excludes": list(EXCLUDES),
            "env_vars": self.variables,
            **packages,
        }


def submit(submission: Submission) -> str:
    """Uploads the folder and starts the job; returns its id.

    Raises:
        ValueError: the folder is too large, or the cluster does not answer or refuses.
    """
    check_size(submission.working_dir)
    client = connect(submission.address)
    try:
        with _environment(RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES=""):  # they are in EXCLUDES
            return client.submit_job(
                entrypoint=submission.entrypoint, runtime_env=submission.runtime_env
            )
    except (RuntimeError, AuthenticationError, requests.RequestException) as error:
        problem = f"Ray at {where(submission.address)} must take the job; got {_brief(error)}"
        raise ValueError(_without(problem, submission.variables.values())) from None


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster at an address, whatever the environment variables say.

    Raises:
        ValueError: the address is not http, or nothing answers there within five seconds.
    """
    if not address.startswith(("http://", "https://")):
        raise ValueError(
            f"the address must be the dashboard's, http://HOST:8265; got {where(address)}"
        )
    sent = headers()
    for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        # Ray's own requests have no time limit.
        requests.get(f"{address.rstrip('/')}/api/version", headers=sent, timeout=5)
        with _environment(RAY_ADDRESS=None, RAY_API_SERVER_ADDRESS=None):
            return JobSubmissionClient(address, headers=sent)
    except requests.RequestException as error:
        problem = f"no answer ({type(error).__name__})"
    except AuthenticationError as error:
        problem = f"{str(error).splitlines()[0]}. {CREDENTIALS}"
    except (RuntimeError, ConnectionError) as error:
        problem = _without(_brief(error), sent.values())
    raise ValueError(f"a Ray dashboard must answer at {where(address)}; got {problem}")


def headers() -> dict[str, str]:
    """The HTTP headers in RAY_JOB_HEADERS, such as what a proxy before the dashboard asks for.

    Raises:
        ValueError: they are not a JSON object of strings; the text, which is secret, is not told.
    """
    try:
        found = json.loads(os.environ.get(HEADERS) or "{}")
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise ValueError(f'{HEADERS} must be a JSON object of strings, {{"NAME": "VALUE"}}')
    return found


def follow(client: JobSubmissionClient, job_id: str) -> int:
    """Prints a job's log as it comes, to the end; returns 0 if the job succeeded, else 1.

    Ctrl-C leaves the job running unless the user says otherwise, and returns 130.

    Raises:
        ValueError: there is no such job, or the cluster stopped answering.
    """
    details(client, job_id)
    try:
        ended = asyncio.run(_tail(client, job_id))
    except KeyboardInterrupt:
        return _interrupted(client, job_id)
    return 0 if _report(job_id, ended) == JobStatus.SUCCEEDED else 1


def stop(client: JobSubmissionClient, job_id: str) -> int:
    """Stops a job and waits for its end; returns 0 once it has ended, else 1."""
    details(client, job_id)
    client.stop_job(job_id)
    give_up = time.monotonic() + STOP_S
    while not (found := details(client, job_id)).status.is_terminal():
        if time.monotonic() >= give_up:
            break
        time.sleep(0.5)
    _report(job_id, found)
    return 0 if found.status.is_terminal() else 1


def status(client: JobSubmissionClient, job_id: str) -> int:
    """Prints how a job is doing; returns 1 if it failed, else 0."""
    return 1 if _report(job_id, details(client, job_id)) == JobStatus.FAILED else 0


def details(client: JobSubmissionClient, job_id: str) -> JobDetails:
    """What the cluster knows of a job.

    Raises:
        ValueError: it knows no such job.
    """
    try:
        return client.get_job_info(job_id)
    except (RuntimeError, AuthenticationError) as error:
        place = where(client.get_address())
        raise ValueError(f"Ray at {place} must know the job; got {_brief(error)}") from None


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


async def _tail(client: JobSubmissionClient, job_id: str) -> JobDetails:
    """Prints the log until the job has ended, across lost connections."""
    printed, answered = 0, time.monotonic()
    while True:
        known = printed
        try:
            async for text in client.tail_job_logs(job_id):
                # After a lost connection Ray sends the log from its beginning.
                print(text[known:], end="", flush=True)
                printed += len(text[known:])
                known = max(0, known - len(text))
                answered = time.monotonic()
            found = details(client, job_id)
            if found.status.is_terminal():
                return found
        except (ClientError, RuntimeError, requests.RequestException) as error:
            if time.monotonic() - answered > SILENCE_S:
                place = where(client.get_address())
                raise ValueError(f"Ray at {place} must answer; got {_brief(error)}") from None
        await asyncio.sleep(1)


def _interrupted(client: JobSubmissionClient, job_id: str) -> int:
    """Asks whether the job should stop too; without a terminal it does not."""
    answer = ""
    if sys.stdin.isatty():
        try:
            answer = input(f"\nStop job {job_id} as well? [y/N] ")
        except (KeyboardInterrupt, EOFError):
            print()
    if answer.strip().lower() in ("y", "yes"):
        stop(client, job_id)
    else:
        print(f"Job {job_id} goes on.\n{hints(job_id)}", flush=True)
    return 130


def hints(job_id: str) -> str:
    """How to come back to a job."""
    command = "python -m jobs.submit"
    return f"Follow it: {command} --follow {job_id}\nStop it:   {command} --stop {job_id}"


def _report(job_id: str, found: JobDetails) -> JobStatus:
    """Prints the job's state and its message, without the log that the message repeats."""
    message = (found.message or "").partition(", last available logs")[0]
    print(f"Job {job_id} {found.status.value}: {_brief(message)}", flush=True)
    return found.status


def _without(text: str, secrets: Iterable[str]) -> str:
    """A text without the values that may be secret; "0" or "true" is none."""
    for secret in secrets:
        text = text.replace(secret, "...") if len(secret) > 5 else text
    return text


def _brief(problem: object) -> str:
    """The first and the last line: what failed, and, after Ray's traceback, why."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()] or [""]
    return lines[0][:300] if len(lines) == 1 else f"{lines[0][:200]} ... {lines[-1][:300]}"


@contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    """Sets environment variables, or with None removes them, for a while."""
    before = {name: os.environ.get(name) for name in values}
    try:
        _set_environment(values)
        yield
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
