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
from flows.parameters import Preset
from flows.services.reachable import check_tracking
from tasks.config.presets import compose
from tasks.config.schema import Params, load_params
from tasks.utils.cli import overrides_parser


@flow(name="rollback", log_prints=False, validate_parameters=True)
def rollback(preset: Preset | None = None) -> Any:
    """Make the champion's predecessor champion again; the run's message says which.

    `preset`: whose model; None: that of params.yaml. Raises InputError if there is no earlier
    champion, or if it cannot be loaded and sampled.
    """
    project = Path.cwd()
    environment.prepare(project)
    params = compose(project, preset, []) if preset else load_params(project / "params.yaml")
    line = roll_back(project, params)
    return Completed(message=line, data=line)


def roll_back(root: Path, params: Params) -> str:
    """Restore the previous champion of `registration.name`; returns one line that says which."""
    from tasks.registry import promotion

    check_tracking(params)
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
