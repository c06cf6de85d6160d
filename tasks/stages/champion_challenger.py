"""Compare a champion with data/student on the present evaluation set.

`python -m tasks.stages.champion_challenger CHAMPION RESULT` compares the student folder CHAMPION
with data/student and writes RESULT.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tasks.utils import environment

if __name__ == "__main__":  # OpenMP reads its settings when torch is imported
    environment.prepare(Path.cwd())

from tasks.config.schema import load_params
from tasks.evaluation.champion_challenger import compare, save
from tasks.utils.cli import set_up_logging, user_errors


def main(argv: list[str] | None = None) -> None:
    """The command line, in a project whose stages have run."""
    set_up_logging()
    parser = argparse.ArgumentParser(
        prog="python -m tasks.stages.champion_challenger",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("champion", type=Path)
    parser.add_argument("result", type=Path)
    with user_errors():
        arguments = parser.parse_args(argv)
        root = Path.cwd()
        save(compare(load_params(root / "params.yaml"), root, arguments.champion), arguments.result)


if __name__ == "__main__":
    main()
