"""The main flow: the stages in order, then register, then promote.

`fewstep run [--preset NAME] [key=value ...]` composes the preset of conf/ with the overrides into
params.yaml, as `dvc exp run -S` does. A deployment gives a revision as well: the run then works in
a git worktree and leaves a DVC experiment.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from tasks.utils import environment

if __name__ == "__main__":  # Prefect reads its settings when it is imported
    environment.prepare(Path.cwd())
    environment.join_services(Path.cwd())
    # At a terminal the flow tells its own story; the run's full log is in Prefect's database.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")

from prefect import flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed

from flows import artifacts
from flows.console import complain, refuse, say
from flows.dvc import experiments, fingerprints
from flows.dvc.params_file import as_list, write_preset
from flows.dvc.worktree import Workspace, uncommitted, workspace
from flows.parameters import Overrides, Preset, Revision
from flows.services.own_server import ServerFailed, prefect_api
from flows.services.reachable import check_tracking
from flows.stages import StageFailed, run_stage
from tasks.config.external_paths import local_paths
from tasks.config.overrides import nested
from tasks.config.presets import DEFAULT, compose
from tasks.config.schema import Params
from tasks.utils.cli import INTERRUPTED, overrides_parser
from tasks.utils.sqlite_files import MigrationFailed

if TYPE_CHECKING:
    from tasks.registry.promotion import Finding


@flow(name="distill", log_prints=False, validate_parameters=True)
def distill(
    preset: Preset = DEFAULT,
    overrides: Overrides = {},  # noqa: B006
    revision: Revision = None,
) -> Any:
    """Distil the teacher of a preset and register the student; finished work is not done again.

    `preset`: a file of conf/preset; `overrides`: {"student": {"steps": 500}}; `revision`: work in a
    worktree at that commit, branch or tag, else in place. The result holds the registered model,
    the verdict on it and the report's path. Raises InputError for mistakes in the input.
    """
    project = Path.cwd()
    environment.prepare(project)
    with workspace(project, revision, run_id()) as work:
        params = configure(work, preset, overrides)
        check_tracking(params)
        run_stages(work.root)
        kept = keep(work)
        model = register(work.root, params, fingerprints.inputs_of(work.root))
        verdict = promote(work.root, params, model["version"])
        report = artifacts.publish(work, params, model["run_id"])
        summary = artifacts.summary(work.root, report, model, verdict)
    return Completed(message=f"{verdict}{kept}", data=summary)


def run_id() -> str:
    """The present flow run's id."""
    return str(runtime.flow_run.id or "")


def configure(work: Workspace, preset: str, overrides: Overrides) -> Params:
    """Compose the workspace's params.yaml, say what changed, and return the params."""
    texts = as_list(overrides)
    params, changes = write_preset(work.root, preset, texts)
    logger = get_run_logger()
    if changes and not work.apart:
        say(f"params.yaml: {'; '.join(changes)}")
    logger.info("preset %s: %s", preset, "; ".join(changes) or "params.yaml is as it was")
    if work.apart:
        logger.info("commit %s, in %s", work.commit, work.root)
        if left_out := uncommitted(work.project):
            logger.warning(
                "not in this commit, so not in this run: changes of %s", ", ".join(left_out)
            )
        experiments.check_inputs(work, local_paths(params))
    if found := fingerprints.digests(work.project, work.root, params):
        params, _ = write_preset(work.root, preset, [*texts, *found])
    return params


def run_stages(root: Path) -> None:
    """Bring the results of all stages up to date."""
    run_stage(root, "dataset")
    run_stage(root, "teacher")
    run_stage(root, "conditions")
    run_stage(root, "trajectories")
    run_stage(root, "student")
    run_stage(root, "evaluation")


@task(retries=1, retry_delay_seconds=2, cache_policy=NO_CACHE)
def keep(work: Workspace) -> str:
    """Save a run at a revision as a DVC experiment and push its data; returns what to add to the
    run's message.
    """
    if not work.apart:
        return ""
    name = experiments.experiment_name(str(runtime.flow_run.name), run_id())
    experiments.save(work, name)
    pushed = experiments.push(work)
    get_run_logger().log(
        logging.WARNING if pushed.failed else logging.INFO, "experiment %s: %s", name, pushed.line
    )
    return f"; experiment {name}: {pushed.line}"


@task(retries=1, retry_delay_seconds=2, cache_policy=NO_CACHE)
def register(root: Path, params: Params, inputs: dict[str, str]) -> dict[str, Any]:
    """Record the run in MLflow and register the student with the tags `inputs`; both find what is
    there already.
    """
    from tasks.registry.registration import register_student
    from tasks.registry.tracking import track_run

    run = track_run(root, params, prefect_run=run_id())
    version = register_student(root, params, run.run_id, inputs)
    get_run_logger().info("MLflow run %s, %s version %s", run.run_id, version.name, version.number)
    return {
        "name": version.name,
        "version": version.number,
        "created": version.created,
        "run_id": run.run_id,
    }


@task(retries=1, retry_delay_seconds=2, cache_policy=NO_CACHE)
def promote(root: Path, params: Params, version: str, finding: Finding | None = None) -> str:
    """Make the version the champion if it is the best on the same evaluation set; returns why or
    why not.

    `finding`: the outcome of a direct comparison with the champion, which then decides.
    """
    if not params.registration.promote:
        return "not promoted: registration.promote is false"
    from tasks.registry import promotion

    decision = promotion.promote(root, params, version, finding=finding)
    get_run_logger().info("%s", decision.reason)
    return decision.reason


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status (0, 1 failed, 2 mistake in the input, 130
    interrupted).
    """
    try:
        parser = overrides_parser("fewstep run", (__doc__ or "").split("\n")[0], params_file=False)
        parser.add_argument(
            "--preset", default=DEFAULT, metavar="NAME", help="see `fewstep presets`"
        )
        parser.add_argument(
            "--anyway", action="store_true", help="start although this machine looks too small"
        )
        arguments = parser.parse_intermixed_args(argv)
        overrides = nested(arguments.overrides)
        params = compose(Path.cwd(), arguments.preset, as_list(overrides))
        environment.check_place(Path.cwd())  # before a server is started
        if not arguments.anyway:
            _check_machine(params)
        check_tracking(params)
        _leave_in_order()
        server = PREFECT_API_URL.value()
        say(
            f"Prefect at {server.removesuffix('/api')}"
            if server
            else "starting Prefect (some seconds) ..."
        )
        with prefect_api(Path.cwd()):
            result: Any = distill(arguments.preset, overrides)
        artifacts.show(result)
    except (ServerFailed, MigrationFailed) as error:
        complain(str(error))
        return 1
    except StageFailed as error:
        complain(f"{error}; the next run goes on from the finished work")
        return 1
    except KeyboardInterrupt:
        complain("interrupted; the next run goes on from the finished work")
        return INTERRUPTED
    except Exception as error:
        return refuse(error)
    return 0


def _check_machine(params: Params) -> None:
    """InputError for a large teacher's job that this machine cannot do. A small job is not looked
    at, so that it starts at once.
    """
    from tasks.estimate.parts import is_large

    if is_large(params, Path.cwd()):
        from tasks.estimate.fits import check_hardware

        say("checking that the job fits this machine (some seconds) ...")
        check_hardware(params, Path.cwd())


def _leave_in_order() -> None:
    """Let a request to end (SIGTERM, a closed terminal) unwind, so that the stage and the server
    end too.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


if __name__ == "__main__":
    sys.exit(main())
