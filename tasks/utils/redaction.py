"""Secrets stay out of logs, records and messages: credentials in URLs, and values of secret
environment variables.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

HIDDEN = "***"
SHORTEST = 6  # a shorter value would hide ordinary words

_CREDENTIALS = re.compile(r"(?<=://)[^\s/@:'\"]*:[^\s/@'\"]+(?=@)|(?<=://)[^\s/@:'\"]+(?=@)")
_QUERY = re.compile(
    r"(?i)([?&][\w.-]*(?:token|secret|password|passwd|signature|credential|api_?key)[\w.-]*=)[^&\s'\"]+"
)
_SECRET_NAME = re.compile(
    r"(?i)(token|secret|passw|api_?key|access_key|credential|auth_string|private_key)"
)


def redact(text: str, environ: Mapping[str, str] | None = None) -> str:
    """`text` with `***` for user:password@ in URLs, secret query values, and the values of secret
    variables.

    Variables are secret by name (TOKEN, SECRET, PASSWORD, API_KEY, ...); default: this process's
    environment.
    """
    for value in secret_values(os.environ if environ is None else environ):
        text = text.replace(value, HIDDEN)
    return _QUERY.sub(rf"\g<1>{HIDDEN}", _CREDENTIALS.sub(HIDDEN, text))


def has_credentials(text: str) -> bool:
    """Whether a URL in `text` carries a user or a password."""
    return bool(_CREDENTIALS.search(text))


def secret_values(environ: Mapping[str, str]) -> list[str]:
    """The values, longest first, of environment variables whose names say that they are secret."""
    values = {
        value
        for name, value in environ.items()
        if _SECRET_NAME.search(name) and len(value) >= SHORTEST
    }
    return sorted(values, key=len, reverse=True)
