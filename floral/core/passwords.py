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


def place_of_password(uri: str) -> str:
    """Return what to do with a password of the MLflow store, in place of writing it into the address `uri`."""
    if uri.startswith("http"):
        return "set the environment variables MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if uri.startswith("postgresql"):
        return "set the environment variable PGPASSWORD, or write the password into the file ~/.pgpass"
    return "give the whole address in the environment variable FLORAL_TRACKING_URI, and not on the command line"


def _hidden(match: re.Match[str]) -> str:
    scheme, user, password = match.group("scheme", "user", "password")
    if password is not None:
        return f"{scheme}{user}:***@"
    return f"{scheme}***@" if scheme.startswith("http") else match[0]
