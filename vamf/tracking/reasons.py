"""Why MLflow does not do what it is asked, in one line, and the way out."""

import re
from urllib.parse import parse_qsl, unquote, urlsplit

from requests import RequestException
from requests.utils import get_environ_proxies, select_proxy

from vamf.files import brief
from vamf.redact import redacted

NOBODY = re.compile(r"refused|timed out|[Cc]onnection (aborted|broken|reset)")
"""What is said of a connection that fails because nobody is there."""

POOL = re.compile(r"^HTTPS?Connection(Pool)?\([^)]*\): ")
"""How urllib3 begins what it says of a connection."""

WAYS_OUT = {
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
"""What mends it, by what MLflow says."""


def failure(uri: str, error: Exception) -> str:
    """That MLflow does not answer, or cannot be used, and why unless that is all there is to say.

    One line, without the credentials of an address.
    """
    lost, proxy = _unanswered(error), _proxy(uri)
    told = reason(uri, error) if lost is None else without_secrets(uri, lost)
    text = f"MLflow at {where(uri)} {'cannot be used' if lost is None else 'does not answer'}"
    if proxy is None and lost is not None and NOBODY.search(lost):
        return text
    ways = [way.format(uri=where(uri)) for sign, way in WAYS_OUT.items() if sign in told]
    if proxy is not None:
        ways.append(f"NO_PROXY={urlsplit(uri).hostname} goes past the proxy {where(proxy)}")
    return "; ".join([f"{text} ({told})", *ways])


def _unanswered(error: Exception) -> str | None:
    """Of a request without an answer, the innermost reason; None of any other error.

    MLflow's own words for it fill half a screen.
    """
    request = error if isinstance(error, RequestException) else error.__context__
    if not isinstance(request, RequestException) or request.response is not None:
        return None
    inner = request.args[0] if request.args else request
    return POOL.sub("", brief(getattr(inner, "reason", None) or inner))


def _proxy(uri: str) -> str | None:
    """The proxy that the environment puts between this machine and a server."""
    if not uri.startswith(("http://", "https://")):
        return None
    return select_proxy(uri, get_environ_proxies(uri))


def reason(uri: str, error: Exception) -> str:
    """The first line of an error, without the credentials of an address."""
    code = getattr(error, "error_code", type(error).__name__)
    line = str(error).strip().partition("\n")[0].removeprefix(f"{code}: ")
    known = "" if code == "INTERNAL_ERROR" else f"{code}: "  # MLflow's word for anything at all
    return f"{known}{without_secrets(uri, line)[:200]}"


def without_secrets(uri: str, line: str) -> str:
    """A line without the credentials of an address, and of this process's environment."""
    for secret in _secrets(uri):
        line = line.replace(secret, "...")
    return redacted(line)


def where(uri: str) -> str:
    """An address without the credentials in it: neither a user's nor a query."""
    parts = urlsplit(uri)
    place = parts.netloc.rpartition("@")[2]
    bare = uri.replace(parts.netloc, place, 1) if parts.netloc != place else uri
    return bare.partition("?")[0]


def _secrets(uri: str) -> list[str]:
    """What of an address is to be told to nobody; the longest first."""
    parts = urlsplit(uri)
    user = parts.netloc.rpartition("@")[0]
    given = [user, user.partition(":")[2], parts.query, *(v for _, v in parse_qsl(parts.query))]
    found = {secret for known in given for secret in (known, unquote(known)) if secret}
    return sorted(found, key=len, reverse=True)
