"""Output that never fails for its encoding, and shows what others wrote harmlessly."""

from __future__ import annotations

import io
import re
import sys

# Control characters but tab and line feed, and those that turn the direction of writing.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def tolerate_encodings() -> None:
    """Let stdout and stderr write what their encoding lacks as an escape, such as \\u2713.

    A terminal or a log in ASCII or Latin-1 would otherwise end a program in UnicodeEncodeError.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def visible(text: str) -> str:
    """`text` with control characters as escapes such as \\x1b.

    Names of files and columns come from others; as they are, they could move a terminal's cursor,
    hide a line or show another one.
    """
    return _UNSEEN.sub(lambda found: found.group().encode("unicode_escape").decode(), text)
