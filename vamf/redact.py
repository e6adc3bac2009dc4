"""Keeping secrets out of whatever is printed or stored."""

import os
import re

SECRET_NAME = re.compile(r"(TOKEN|PASSWORD|PASSWD|SECRET|API_KEY|ACCESS_KEY|CREDENTIALS)$")
"""How the names end of environment variables that hold secrets."""

SHORTEST = 6
"""Characters below which a value is no secret: "0", "true" and "none" are words."""

USER = re.compile(r"(:/{1,2})[^/\s@'\"]+(?:@[^/\s@'\"]+)*@")
"""The user, and the password, of an address within a text; a ``Path`` leaves one of its slashes."""

QUERY = re.compile(
    r"(?<=[?&])([^=&\s'\"]*(?:token|password|secret|key|sig|credential)[^=&\s'\"]*)=[^&\s'\"]+",
    re.IGNORECASE,
)
"""The settings within an address that hold secrets."""


def redacted(text: str) -> str:
    """A text without users and secrets of addresses, and those of this process's environment."""
    text = QUERY.sub(r"\1=...", USER.sub(r"\1...@", text))
    values = (value for name, value in os.environ.items() if SECRET_NAME.search(name))
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "...") if len(value) >= SHORTEST else text
    return text
