"""Measure what a plan asks for, and write its page: ``make benchmark``, ``make ablation``.

Finished runs are not done again, interrupted ones go on. The page is made from what there is.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from types import FrameType

from tasks.utils import environment

if __name__ == "__main__":  # OpenMP reads its settings when torch is imported
    environment.prepare(Path.cwd())

from flows.dvc.worktree import Workspace, resolve, uncommitted, workspace
from models.common.errors import InputError
from scripts.benchmark import page, timing
from scripts.benchmark.plan import PLANS, Plan, Run, check_alike, chosen, read_plan, runs_of
from scripts.benchmark.runs import RECORD, StageFailed, State, configure, make, state_of
from tasks.utils.atomic import atomic_write_text
from tasks.utils.cli import set_up_logging, user_errors
from tasks.utils.hashing import fingerprint

logger = logging.getLogger("scripts.benchmark")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 1 if a run failed, which does not keep the others from running."""
    arguments = _arguments(argv)
    project = Path.cwd()
    plan = read_plan(PLANS / f"{arguments.plan}.yaml")
    runs = runs_of(plan)
    check_alike(project, plan, runs)
    wanted = [] if arguments.page_only else chosen(runs, arguments.only, arguments.seeds)
    if left_out := [path for path in uncommitted(project) if path != str(plan.page)]:
        logger.warning("not in this commit, so not measured: changes of %s", ", ".join(left_out))
    failed: dict[Run, str] = {}
    states: dict[Run, State] = {}
    for domain, own in groupby(runs, key=lambda run: run.domain):
        states |= _domain(project, plan, domain, list(own), wanted, failed)
    text = page.render(project, plan, states, failed)
    atomic_write_text(project / plan.page, text)
    done = sum(state.record is not None for state in states.values())
    print(f"{plan.page}: {done} of {len(runs)} runs")
    for run, line in failed.items():
        print(f"error: {run.name}: {line}", file=sys.stderr)
    return 1 if failed else 0


def _domain(
    project: Path,
    plan: Plan,
    domain: str,
    runs: list[Run],
    wanted: list[Run],
    failed: dict[Run, str],
) -> dict[Run, State]:
    """Make the wanted runs of a domain, time its samplers, and say what there is of all its runs.

    A worktree for each domain and commit: several domains may be measured at once, and an
    interrupted one finds its own again.
    """
    name = fingerprint(["benchmark", domain, resolve(project, "HEAD")])
    with workspace(project, "HEAD", name) as work:
        for run in (run for run in runs if run in wanted):
            try:
                make(work, run)
            except (InputError, StageFailed) as error:
                failed[run] = str(error)
                logger.error("%s: %s", run.name, error)
        states = dict.fromkeys(runs, State(None))
        for run in (run for run in runs if (run.folder(project) / RECORD).is_file()):
            try:
                configure(work, run)
                states[run] = state_of(work, run)
            except InputError as error:
                failed.setdefault(run, str(error))
        if any(run in wanted for run in runs):
            _time(work, plan, runs, states)
    return states


def _time(work: Workspace, plan: Plan, runs: list[Run], states: dict[Run, State]) -> None:
    """Time the domain's samplers, once its training-free ones have been measured."""
    jobs = plan.domains[runs[0].domain].jobs
    there = [run for run in runs if run.first and states[run].done]
    rivals = [run for run in there if jobs[run.job].rows == "rivals"]
    if rivals:
        students = [run for run in there if jobs[run.job].rows == "student"]
        timing.time_domain(work, rivals[0], students, plan.calls)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make benchmark", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--plan", default="benchmark", metavar="NAME", help="a file of conf/: benchmark, ablation"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="domains or jobs: paths paths/sfd"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="at most N seeds of every job")
    parser.add_argument("--page-only", action="store_true", help="run nothing, write the page")
    return parser.parse_args(argv)


def _leave_in_order() -> None:
    """Let a request to end unwind, so that the stage ends too."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


if __name__ == "__main__":
    set_up_logging()
    logging.getLogger("scripts").setLevel(logging.INFO)
    _leave_in_order()
    with user_errors():
        sys.exit(main())
