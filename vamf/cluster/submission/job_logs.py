"""Follows a job on a cluster: prints its log and state, and returns its exit status."""

import asyncio
import sys
import time

import requests
from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from vamf import commands
from vamf.cluster.submission import submit
from vamf.cluster.submission.dashboard import first_and_last_line
from vamf.redact import without_credentials

SILENCE_S = 60.0
"""Seconds without an answer after which a job is no longer followed."""
PAUSE_S = 1.0
"""Seconds until a connection that was lost is made again."""
STOP_S = submit.STOP_S + 15.0
"""Seconds to wait for the end of a stopped job, which Ray kills before."""


def follow(client: JobSubmissionClient, job_id: str) -> int:
    """Prints a job's log until it ends; returns the job's exit status.

    That is 0 if it succeeded, and 1 if it has none, as a stopped job.

    Ctrl-C leaves the job running unless the user says otherwise, and returns 130.

    Raises:
        ValueError: there is no such job, or the cluster stopped answering.
    """
    details(client, job_id)
    try:
        ended = asyncio.run(_tail(client, job_id))
    except KeyboardInterrupt:
        return _interrupted(client, job_id)
    if _report(job_id, ended) == JobStatus.SUCCEEDED:
        return 0
    return ended.driver_exit_code or 1


def stop(client: JobSubmissionClient, job_id: str) -> int:
    """Stops a job and waits for its end; returns 0 once it has ended, else 1."""
    details(client, job_id)
    client.stop_job(job_id)
    deadline = time.monotonic() + STOP_S
    while not (found := details(client, job_id)).status.is_terminal():
        if time.monotonic() >= deadline:
            break
        time.sleep(0.5)
    _report(job_id, found)
    return 0 if found.status.is_terminal() else 1


def status(client: JobSubmissionClient, job_id: str) -> int:
    """Prints a job's state; returns 1 if it failed, else 0."""
    return 1 if _report(job_id, details(client, job_id)) == JobStatus.FAILED else 0


def details(client: JobSubmissionClient, job_id: str) -> JobDetails:
    """A job's details.

    Raises:
        ValueError: the cluster has no such job.
    """
    try:
        return client.get_job_info(job_id)
    except (RuntimeError, AuthenticationError) as error:
        address, got = without_credentials(client.get_address()), first_and_last_line(error)
        raise ValueError(f"Ray at {address} must know the job; got {got}") from None


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
                address, got = without_credentials(client.get_address()), first_and_last_line(error)
                raise ValueError(f"Ray at {address} must answer; got {got}") from None
        await asyncio.sleep(PAUSE_S)


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
        print(f"Job {job_id} continues.\n{hints(job_id)}", flush=True)
    return 130


def hints(job_id: str) -> str:
    """The commands that follow and stop a job."""
    command = commands.shown("submit")
    return f"Follow it: {command} --follow {job_id}\nStop it:   {command} --stop {job_id}"


def _report(job_id: str, found: JobDetails) -> JobStatus:
    """Prints the job's state and its message, without the log that the message repeats."""
    message = (found.message or "").partition(", last available logs")[0]
    print(f"Job {job_id} {found.status.value}: {first_and_last_line(message)}", flush=True)
    return found.status
