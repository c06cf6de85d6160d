"""Write the student's form for its teacher's own pipeline of diffusers into a folder: a LoRA or the
network, a scheduler and a card. `python -m flows.export FOLDER`; `--keys comfyui` names the LoRA's
tensors as ComfyUI reads them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.markup import escape

from flows.console import refuse, say
from models.takeaway.lora_file import KEYS
from tasks.methods.take_away import take_away


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(prog="python -m flows.export", description=__doc__)
    made.add_argument("folder", type=Path, help="to be made")
    made.add_argument("--keys", default="diffusers", metavar="NAMES", help=" or ".join(KEYS))
    return made


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = parser().parse_args(argv)
    try:
        files = take_away(Path.cwd(), given.folder, given.keys)
        size = f"{len(files)} files, {sum(files.values()):,} bytes"
        say(f"{escape(str(given.folder))}: {size}; see its README.md")
    except Exception as error:
        return refuse(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
