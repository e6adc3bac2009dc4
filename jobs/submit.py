"""Runs a job on a Ray cluster: ``python -m jobs.submit [options] -- train digits ...``."""

import importlib
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from vamf import commands, output
from vamf.cluster.submission import dashboard, job_logs, submit

from .reading import read


@dataclass(frozen=True, kw_only=True)
class Options:
    """Runs a job on a Ray cluster: python -m jobs.submit [options] -- train digits ..."""

    address: str = field(default_factory=dashboard.default_address)
    """The cluster's dashboard; RAY_API_SERVER_ADDRESS or RAY_ADDRESS if set."""
    working_dir: Path = Path()
    """The folder that is uploaded; it holds vamf and jobs, unless vamf is an installed wheel."""
    env: tuple[str, ...] = ()
    """Environment of the job: NAME=VALUE, or NAME for its value here. MLFLOW_* goes along."""
    packages: tuple[str, ...] = ()
    """Requirements the cluster lacks, to install for this job; its Python must have pip."""
    detach: bool = False
    """Do not follow the log."""
    follow: str | None = None
    """Follow the log of the job with this id."""
    stop: str | None = None
    """Stop the job with this id."""
    status: str | None = None
    """Print the state of the job with this id."""


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0 if the job succeeded."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    if split == len(arguments):
        _require_dashes(arguments)
    options = _options(arguments[:split])
    actions = {job_logs.follow: options.follow, job_logs.stop: options.stop}
    for action, job_id in (actions | {job_logs.status: options.status}).items():
        if job_id:
            return action(dashboard.connect(options.address), job_id)
    submission = submit.Submission(
        command=tuple(arguments[split + 1 :]),
        address=options.address,
        working_dir=options.working_dir,
        env=submit.variables(options.env),
        packages=options.packages,
    )
    _check(submission)
    job_id = submit.submit(submission)
    print(f"Submitted {job_id}.\n{job_logs.hints(job_id)}\n", flush=True)
    return 0 if options.detach else job_logs.follow(dashboard.connect(options.address), job_id)


def _options(arguments: list[str]) -> Options:
    """The options; exits with status 2 if they are invalid."""
    try:
        return read(Options, arguments, prog="submit")
    except ValueError as error:
        print(f"submit: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _require_dashes(arguments: list[str]) -> None:
    """Raises ValueError for `jobs.submit train ...`, which lacks the `--` before the job."""
    for at, word in enumerate(arguments):
        before = arguments[at - 1] if at else ""
        if word in submit.JOBS and (before == "--detach" or not before.startswith("--")):
            there = shlex.join([*arguments[:at], "--", *arguments[at:]])
            raise ValueError(f"-- must stand before the job: {commands.shown('submit', there)}")


def _check(submission: submit.Submission) -> None:
    """Exits with what is wrong with the job's options, if the job is the one of this code."""
    name, *arguments = submission.command
    job = importlib.import_module(commands.module(name))
    if submission.program.samefile(str(job.__file__)):
        job.check(arguments)


if __name__ == "__main__":
    output.ignore_write_errors()
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"submit: {error}")
