"""Send the student to a Hugging Face hub: `python -m flows.push owner/name`; `--dry-run` shows what
would go.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.markup import escape

from flows.console import refuse, say
from tasks.registry.hub import push


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(prog="python -m flows.push", description=__doc__)
    made.add_argument("repo", help="owner/name on the hub")
    made.add_argument("--dry-run", action="store_true", help="show the files and the card only")
    made.add_argument("--license", help="of the weights, where the teacher states none or another")
    made.add_argument("--public", action="store_true", help="readable by everybody (else private)")
    return made


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = parser().parse_args(argv)
    try:
        sent = push(
            Path.cwd(),
            given.repo,
            licence=given.license,
            dry_run=given.dry_run,
            private=not given.public,
        )
        for line in sent.lines():
            say(escape(line))
    except Exception as error:
        return refuse(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
