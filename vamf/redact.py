"""Removes secrets from texts that are printed or stored."""

import os
import re
from urllib.parse import urlsplit

SECRET_NAME = re.compile(r"(TOKEN|PASSWORD|PASSWD|SECRET|API_KEY|ACCESS_KEY|CREDENTIALS)$")
"""Endings of the names of environment variables that hold secrets."""

SHORTEST = 6
"""The minimum length of a secret: shorter values, such as "0", "true", "none", are no secrets."""

USER = re.compile(r"(:/{1,2})[^/\s@'\"]+(?:@[^/\s@'\"]+)*@")
"""The user and password in an address within a text; a ``Path`` keeps one of its two slashes."""

QUERY = re.compile(
    r"(?<=[?&])(?!viewStateShareKey=)([^=&\s'\"]*(?:token|password|secret|key|sig|credential)[^=&\s'\"]*)=[^&\s'\"]+",
    re.IGNORECASE,
)
"""The query settings of an address that hold secrets; the key of a view in MLflow is none."""


def redacted(text: str) -> str:
    """A text without the users and secrets of addresses, and without secrets of the environment."""
    text = QUERY.sub(r"\1=...", USER.sub(r"\1...@", text))
    values = (value for name, value in os.environ.items() if SECRET_NAME.search(name))
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "...") if len(value) >= SHORTEST else text
    return text


def without_credentials(uri: str) -> str:
    """An address without its user, password and query."""
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    bare = uri.replace(parts.netloc, host, 1) if parts.netloc != host else uri
    return bare.partition("?")[0]
