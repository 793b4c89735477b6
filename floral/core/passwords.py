"""Hide passwords in addresses, so that no message, log or file shows them."""

from __future__ import annotations

import re

USER_AND_PASSWORD = re.compile(r"(?<=://)(?:([^\s/:@'\"]*):\S*|[^\s/:@'\"]+)@")
"""User and password at the start of an address. The password may itself contain "@" or "/"."""
SECRET_VALUE = re.compile(r"\b(password|passwd|secret|token)=[^&\s'\"]+", re.I)
"""A password in the query part of an address, such as `?password=…`."""


def without_passwords(text: str) -> str:
    """Return the text, with `***` in place of the password of each address, such as `http://user:password@host`.

    An address with a single word before "@" has a token in place of user and password. The token is hidden too.
    """
    hidden = USER_AND_PASSWORD.sub(lambda match: f"{match[1]}:***@" if match[1] else "***@", text)
    return SECRET_VALUE.sub(r"\1=***", hidden)
