"""What a job will cost, before anything starts: network evaluations, hours, memory, disk.

`fewstep estimate [--preset NAME] [--device H100] [key=value ...]`. Nothing is written and no
weights are needed: networks are built from their configurations, on a device without memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from tasks.utils import environment

if __name__ == "__main__":  # OpenMP reads its settings when torch is imported
    environment.prepare(Path.cwd())

from flows.console import refuse
from tasks.config.overrides import nested
from tasks.config.presets import DEFAULT, compose
from tasks.utils.cli import overrides_parser
from tasks.utils.redaction import redact
from tasks.utils.spinning import watch_cores


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status (0, 2 for a mistake in the input)."""
    try:
        arguments = _parser().parse_intermixed_args(argv)
        _estimate(arguments)
    except Exception as error:
        return refuse(error)
    return 0


def _parser() -> argparse.ArgumentParser:
    about = (__doc__ or "").split("\n")[0]
    parser = overrides_parser("fewstep estimate", about, params_file=False)
    parser.add_argument("--preset", default=DEFAULT, metavar="NAME", help="see `fewstep presets`")
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="a GPU by name, such as H100; default: this machine, timed where that is possible",
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    return parser


def _estimate(arguments: argparse.Namespace) -> None:
    from flows.dvc.params_file import as_list
    from tasks.estimate.devices import device_named
    from tasks.estimate.fits import misfits
    from tasks.estimate.report import estimate, lines

    watch_cores()  # a forward pass is timed
    device = None if arguments.device is None else device_named(arguments.device)
    root = Path.cwd()
    params = compose(root, arguments.preset, as_list(nested(arguments.overrides)))
    found = estimate(params, root, device)
    free = shutil.disk_usage(root).free
    if arguments.json:
        told = {"told": found.told, "stages": {each.name: asdict(each) for each in found.stages}}
        print(json.dumps(told | {"misfits": misfits(found, free)}, indent=2))
        return
    for line in lines(found):
        print(redact(line))
    for line in misfits(found, free):
        print(redact(f"does not fit: {line}"))


if __name__ == "__main__":
    sys.exit(main())
