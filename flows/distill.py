"""The main flow: the stages in order, then register, then promote.

`python -m flows.distill [key=value ...]`; overrides are written into params.yaml, as `dvc exp run -S` does.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from tasks import environment

if __name__ == "__main__":  # Prefect reads its settings when it is imported
    environment.prepare(Path.cwd())
    environment.join_services(Path.cwd())
    # At a terminal the flow tells its own story; the run's full log is in Prefect's database.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")

from prefect import flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE

from flows import artifacts
from flows.console import complain, say
from flows.overrides import apply_overrides, as_list
from flows.stages import StageFailed, run_stage
from models.errors import InputError
from tasks.cli import INPUT_ERROR, INTERRUPTED, overrides_parser
from tasks.params import Params, load_params

PARAMS = "params.yaml"


@flow(name="distill", log_prints=False, validate_parameters=True)
def distill(overrides: list[str] | dict[str, Any] | None = None) -> dict[str, Any]:
    """Distil the teacher of params.yaml and register the student; finished work is not done again.

    `overrides`: ["student.steps=500"] or {"student": {"steps": 500}}. Returns the registered model, the
    verdict on it and the report's path. Raises InputError for mistakes in the input.
    """
    root = Path.cwd()
    environment.prepare(root)
    params = configure(root, as_list(overrides or []))
    run_stage(root, "dataset")
    run_stage(root, "teacher")
    run_stage(root, "trajectories")
    run_stage(root, "student")
    run_stage(root, "evaluation")
    model = register(root, params)
    verdict = promote(root, params, model["version"])
    artifacts.publish(root)
    return artifacts.summary(root, model, verdict)


def configure(root: Path, overrides: list[str]) -> Params:
    """Write the overrides into params.yaml, say what changed, and return the params."""
    params, changes = apply_overrides(root / PARAMS, overrides)
    if changes:
        say(f"params.yaml: {'; '.join(changes)}")
        get_run_logger().info("params.yaml: %s", "; ".join(changes))
    return params


@task(retries=1, retry_delay_seconds=2, cache_policy=NO_CACHE)
def register(root: Path, params: Params) -> dict[str, Any]:
    """Record the run in MLflow and register the student; both find what is there already."""
    from tasks.registration import register_student
    from tasks.tracking import track_run

    run = track_run(root, params, prefect_run=str(runtime.flow_run.id or ""))
    version = register_student(root, params, run.run_id)
    get_run_logger().info("MLflow run %s, %s version %s", run.run_id, version.name, version.number)
    return {"name": version.name, "version": version.number, "created": version.created, "run_id": run.run_id}


@task(retries=1, retry_delay_seconds=2, cache_policy=NO_CACHE)
def promote(root: Path, params: Params, version: str) -> str:
    """Make the version the champion if it is the best on the same evaluation set; returns why or why not."""
    if not params.registration.promote:
        return "not promoted: registration.promote is false"
    from tasks import registration

    decision = registration.promote(root, params, version)
    get_run_logger().info("%s", decision.reason)
    return decision.reason


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status (0, 1 failed, 2 mistake in the input, 130 interrupted)."""
    try:
        arguments = overrides_parser("python -m flows.distill", (__doc__ or "").split("\n")[0]).parse_args(argv)
        load_params(Path(PARAMS), arguments.overrides)  # before a server is started
        _leave_in_order()
        server = os.environ.get("PREFECT_API_URL")
        say(f"Prefect at {server.removesuffix('/api')}" if server else "starting Prefect (some seconds) ...")
        artifacts.show(distill(arguments.overrides))
    except InputError as error:
        complain(str(error))
        return INPUT_ERROR
    except StageFailed as error:
        complain(f"{error}; the next run goes on from the finished work")
        return 1
    except KeyboardInterrupt:
        complain("interrupted; the next run goes on from the finished work")
        return INTERRUPTED
    return 0


def _leave_in_order() -> None:
    """Let a request to end (SIGTERM, a closed terminal) unwind, so that the stage and the server end too."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


if __name__ == "__main__":
    sys.exit(main())
