"""Record, register and promote what `dvc repro` made: `python -m flows.register [--force]`."""

from __future__ import annotations

import sys
from pathlib import Path

from tasks.utils import environment

if __name__ == "__main__":  # MLflow reads its settings when it is imported
    environment.prepare(Path.cwd())

from flows.console import refuse, say
from flows.dvc import fingerprints
from flows.dvc import repro as pipeline
from flows.services.reachable import check_tracking
from models.common.errors import InputError
from tasks.config.schema import Params, load_params
from tasks.utils.cli import overrides_parser


def register_results(root: Path, params: Params, force: bool = False) -> str:
    """Track, register and promote the results in data/; returns one line that says what happened.

    Raises InputError if a stage's results are missing or not those of the present code, params and
    inputs, or if the MLflow server does not answer.
    """
    from tasks.registry import promotion, registration, tracking

    check_tracking(params)
    if stale := pipeline.outdated_stages(root):
        raise InputError(
            f"out of date: {', '.join(stale)}: expected finished stages; run `make repro` or "
            "`make run` first"
        )
    run = tracking.track_run(root, params)
    version = registration.register_student(root, params, run.run_id, fingerprints.inputs_of(root))
    state = "registered" if version.created else "registered before"
    line = f"{version.name} version {version.number} ({state})"
    if params.registration.promote or force:
        line += f"; {promotion.promote(root, params, version.number, force).reason}"
    return line


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = overrides_parser("python -m flows.register", (__doc__ or "").split(":")[0])
    parser.add_argument(
        "--force", action="store_true", help="promote whatever the present champion's figures"
    )
    try:
        arguments = parser.parse_args(argv)
        root = Path.cwd()
        say(
            register_results(
                root, load_params(arguments.params, arguments.overrides), arguments.force
            )
        )
    except Exception as error:
        return refuse(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
