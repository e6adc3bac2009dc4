"""Explains an error of MLflow in one line, with its remedy if it is known."""

import re
from urllib.parse import parse_qsl, unquote, urlsplit

from requests import RequestException
from requests.utils import get_environ_proxies, select_proxy

from vamf.errors import first_line, one_line
from vamf.redact import redacted, without_credentials

REFUSED = re.compile(r"refused|timed out|[Cc]onnection (aborted|broken|reset)")
"""Messages of connections that fail because no server is there."""

POOL = re.compile(r"^HTTPS?Connection(Pool)?\([^)]*\): ")
"""The prefix of urllib3's messages."""

REMEDIES = {
    "out-of-date database schema": (
        "`mlflow db upgrade {uri}` brings it up to date, unless a newer MLflow has made it"
    ),
    "UNAUTHENTICATED": (
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, must be "
        "those of a user"
    ),
    "Databricks credential": (
        "DATABRICKS_HOST and DATABRICKS_TOKEN, or a profile that DATABRICKS_CONFIG_PROFILE names"
    ),
    "filesystem tracking backend": "--tracking sqlite:////FOLDER/mlflow.db",
}
"""Remedies, by a part of MLflow's message."""


def failure(uri: str, error: Exception) -> str:
    """A line that MLflow does not answer, or cannot be used, with the reason and a remedy if known.

    Without the credentials of an address.
    """
    unanswered, proxy = _unanswered(error), _proxy(uri)
    why = reason(uri, error) if unanswered is None else without_secrets(uri, unanswered)
    address = without_credentials(uri)
    text = f"MLflow at {address} {'cannot be used' if unanswered is None else 'does not answer'}"
    if proxy is None and unanswered is not None and REFUSED.search(unanswered):
        return text
    remedies = [text.format(uri=address) for part, text in REMEDIES.items() if part in why]
    if proxy is not None:
        bare = without_credentials(proxy)
        remedies.append(f"NO_PROXY={urlsplit(uri).hostname} goes past the proxy {bare}")
    return "; ".join([f"{text} ({why})", *remedies])


def _unanswered(error: Exception) -> str | None:
    """The innermost reason of a request without an answer; None for any other error.

    MLflow's own message for it fills half a screen.
    """
    request = error if isinstance(error, RequestException) else error.__context__
    if not isinstance(request, RequestException) or request.response is not None:
        return None
    inner = request.args[0] if request.args else request
    return POOL.sub("", one_line(getattr(inner, "reason", None) or inner))


def _proxy(uri: str) -> str | None:
    """The proxy that the environment sets for requests to a server, if any."""
    if not uri.startswith(("http://", "https://")):
        return None
    return select_proxy(uri, get_environ_proxies(uri))


def reason(uri: str, error: Exception) -> str:
    """The first line of an error, without the credentials of an address."""
    code = getattr(error, "error_code", type(error).__name__)
    line = first_line(error).removeprefix(f"{code}: ")
    general = ("INTERNAL_ERROR", line)  # the former is MLflow's code for any error
    known = "" if code in general else f"{code}: "
    return f"{known}{without_secrets(uri, line)[:200]}"


def without_secrets(uri: str, line: str) -> str:
    """A line without the credentials of an address, and of this process's environment."""
    for secret in _secrets(uri):
        line = line.replace(secret, "...")
    return redacted(line)


def _secrets(uri: str) -> list[str]:
    """The secret parts of an address, the longest first."""
    parts = urlsplit(uri)
    user = parts.netloc.rpartition("@")[0]
    given = [user, user.partition(":")[2], parts.query, *(v for _, v in parse_qsl(parts.query))]
    found = {secret for known in given for secret in (known, unquote(known)) if secret}
    return sorted(found, key=len, reverse=True)
