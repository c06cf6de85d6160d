"""Output that never fails for its encoding."""

from __future__ import annotations

import io
import sys


def tolerate_encodings() -> None:
    """Let stdout and stderr write what their encoding lacks as an escape, such as \\u2713.

    A terminal or a log in ASCII or Latin-1 would otherwise end a program in UnicodeEncodeError.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
