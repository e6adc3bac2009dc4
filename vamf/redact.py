"""Keeping secrets out of whatever is printed or stored."""

import os
import re

SECRET_NAME = re.compile(r"(TOKEN|PASSWORD|PASSWD|SECRET|API_KEY|ACCESS_KEY|CREDENTIALS)$")
"""How the names end of environment variables that hold secrets."""

SHORTEST = 6
"""Characters below which a value is no secret: "0", "true" and "none" are words."""

USER = re.compile(r"(?<=://)[^/\s@'\"]+(?:@[^/\s@'\"]+)*@")
"""The user, and the password, of an address within a text."""


def redacted(text: str) -> str:
    """A text without users of addresses, and without secrets of this process's environment."""
    text = USER.sub("...@", text)
    values = (value for name, value in os.environ.items() if SECRET_NAME.search(name))
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "...") if len(value) >= SHORTEST else text
    return text
