"""Is everything there that a run needs? `make doctor`, or `python -m flows.doctor.doctor [--json]`.

Exit status 1 if something will not work, 0 otherwise; warnings are advice.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.markup import escape

from flows.console import complain, say
from flows.doctor.check import Finding, examine
from flows.doctor.machine_checks import machine_checks
from flows.doctor.project_checks import project_checks
from tasks.utils import environment
from tasks.utils.cli import INPUT_ERROR

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def diagnose(root: Path, ports: tuple[int, int] = (4200, 5000)) -> list[Finding]:
    """All findings about this machine and the project at `root`; `ports`: of Prefect and MLflow."""
    return examine([*machine_checks(root, ports), *project_checks(root)])


def show(findings: list[Finding]) -> None:
    """Print a table, and under everything that is not well how to fix it."""
    for item in findings:
        colour = COLOURS[item.state]
        say(f"[{colour}]{item.state:<4}[/]  {escape(f'{item.check:<17} {item.found}')}")
        if item.fix:
            say(f"      {'':<17} -> {escape(item.fix)}")
    count = {state: sum(item.state == state for item in findings) for state in COLOURS}
    say(f"{count['ok']} ok, {count['warn']} to look at, {count['fail']} to fix")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.doctor.doctor", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--port", type=int, default=4200, help="of the Prefect server")
    parser.add_argument("--mlflow-port", type=int, default=5000, help="of the MLflow server")
    arguments = parser.parse_args(argv)
    root = Path.cwd().resolve()
    if not (root / "params.yaml").is_file():
        complain(f"{root}: no params.yaml here: expected the project's root folder; change into it")
        return INPUT_ERROR
    environment.prepare(root)
    findings = diagnose(root, (arguments.port, arguments.mlflow_port))
    if arguments.json:
        print(json.dumps([asdict(item) for item in findings], indent=2))
    else:
        show(findings)
    return int(any(item.state == "fail" for item in findings))


if __name__ == "__main__":
    sys.exit(main())
