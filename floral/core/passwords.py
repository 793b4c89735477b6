"""Hide passwords in addresses, so that no message, log or file shows them."""

from __future__ import annotations

import re

ADDRESS = re.compile(r"(?P<scheme>\w[\w+.-]*://)(?P<user>[^\s/:'\"]*)(?P<password>:\S*)?@")
"""Start of an address with a user, who may be an e-mail address. The password may itself contain "@" or "/"."""
SECRET_VALUE = re.compile(r"\b(password|passwd|secret|token)=[^&\s'\"]+", re.I)
"""A password in the query part of an address, such as `?password=…`."""


def without_passwords(text: str) -> str:
    """Return the text, with `***` in place of the password of each address, such as `http://user:password@host`.

    A web address with a single word before "@" has a token in place of user and password. The token is hidden too.
    """
    return SECRET_VALUE.sub(r"\1=***", ADDRESS.sub(_hidden, text))


def _hidden(match: re.Match[str]) -> str:
    scheme, user, password = match.group("scheme", "user", "password")
    if password is not None:
        return f"{scheme}{user}:***@"
    return f"{scheme}***@" if scheme.startswith("http") else match[0]
