"""What the person at the terminal reads."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console

from flows.services.reachable import unreached
from tasks.utils.cli import MACHINE_ERROR, in_one_line
from tasks.utils.redaction import redact
from tasks.utils.streams import visible

FILE_WIDTH = 110


def say(message: Any) -> None:
    """Print a line (rich markup) or a rich table to stdout; tables in files do not wrap."""
    width = None if sys.stdout.isatty() else FILE_WIDTH
    console = Console(
        file=sys.stdout, width=width, highlight=False, soft_wrap=isinstance(message, str)
    )
    console.print(visible(redact(message)) if isinstance(message, str) else message)


def complain(message: str) -> None:
    """Print `error: message` as one line to stderr."""
    print(f"error: {visible(redact(message))}", file=sys.stderr)


def refuse(error: Exception) -> int:
    """Complain about what a user or the machine's keeper can fix and return the exit status; a bug
    is raised again.
    """
    if told := in_one_line(error):
        line, status = told
    elif (lost := unreached(error)) is not None:
        line, status = lost, MACHINE_ERROR
    else:
        raise error
    complain(line)
    return status
