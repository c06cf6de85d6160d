"""Put the previous champion back: `python -m flows.rollback`, or the deployment
`rollback/manual`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tasks.utils import environment

if __name__ == "__main__":  # MLflow reads its settings when it is imported
    environment.prepare(Path.cwd())

from prefect import flow
from prefect.states import Completed

from flows.console import refuse, say
from tasks.config.schema import Params, load_params
from tasks.utils.cli import overrides_parser


@flow(name="rollback", log_prints=False)
def rollback() -> Any:
    """Make the champion's predecessor champion again; the run's message says which.

    Raises InputError if there is none, or if it cannot be loaded and sampled.
    """
    project = Path.cwd()
    environment.prepare(project)
    line = roll_back(project, load_params(project / "params.yaml"))
    return Completed(message=line, data=line)


def roll_back(root: Path, params: Params) -> str:
    """Restore the previous champion of `registration.name`; returns one line that says which."""
    from tasks.registry import promotion

    return promotion.rollback(root, params)


def main(argv: list[str] | None = None) -> int:
    """The command line, without Prefect; returns the exit status."""
    try:
        arguments = overrides_parser(
            "python -m flows.rollback", (__doc__ or "").split(":")[0]
        ).parse_args(argv)
        say(roll_back(Path.cwd(), load_params(arguments.params, arguments.overrides)))
    except Exception as error:
        return refuse(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
