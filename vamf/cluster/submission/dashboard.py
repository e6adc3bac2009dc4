"""Connects to a cluster's dashboard, which accepts jobs: its address, headers and errors."""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from vamf.compat import ray as compat
from vamf.errors import first_line
from vamf.redact import without_credentials

HEADERS = "RAY_JOB_HEADERS"
"""Ray's own variable for HTTP headers."""

CREDENTIALS = (
    f"A token goes with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, what a proxy wants with {HEADERS}"
)

LOCAL = "http://127.0.0.1:8265"

ANSWER_S = 5.0
"""Seconds that a dashboard may take to answer."""


def default_address() -> str:
    """RAY_API_SERVER_ADDRESS, else RAY_ADDRESS, else this machine's dashboard."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    address = next((os.environ[name] for name in names if os.environ.get(name)), LOCAL)
    return LOCAL if address in ("auto", "local") else address


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster at an address; the environment variables are ignored.

    Raises:
        ValueError: the address is not http, or nothing answers there within five seconds.
    """
    if not address.startswith(("http://", "https://")):
        raise ValueError(
            "the address must be the dashboard's, http://HOST:8265; "
            f"got {without_credentials(address)}"
        )
    sent = headers()
    for name in compat.UPLOAD_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        # Ray's own requests have no time limit.
        requests.get(f"{address.rstrip('/')}/api/version", headers=sent, timeout=ANSWER_S)
        with environment(RAY_ADDRESS=None, RAY_API_SERVER_ADDRESS=None):
            return JobSubmissionClient(address, headers=sent)
    except requests.RequestException as error:
        problem = f"no answer ({type(error).__name__})"
    except AuthenticationError as error:
        problem = f"{first_line(error)}. {CREDENTIALS}"
    except (RuntimeError, ConnectionError) as error:
        problem = without(first_and_last_line(error), sent.values())
    raise ValueError(
        f"a Ray dashboard must answer at {without_credentials(address)}; got {problem}"
    )


def headers() -> dict[str, str]:
    """The HTTP headers in RAY_JOB_HEADERS, such as credentials for a proxy before the dashboard.

    Raises:
        ValueError: they are not a JSON object of strings; the message omits the secret text.
    """
    try:
        found = json.loads(os.environ.get(HEADERS) or "{}")
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise ValueError(f'{HEADERS} must be a JSON object of strings, {{"NAME": "VALUE"}}')
    return found


def without(text: str, secrets: Iterable[str]) -> str:
    """A text with secret values removed; values of at most 5 characters are not secret."""
    for secret in secrets:
        text = text.replace(secret, "...") if len(secret) > 5 else text
    return text


def first_and_last_line(problem: object) -> str:
    """The first and last line of Ray's message: what failed, and, after its traceback, why."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()] or [""]
    return lines[0][:300] if len(lines) == 1 else f"{lines[0][:200]} ... {lines[-1][:300]}"


@contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Sets environment variables, or removes those that are None, within the block."""
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
