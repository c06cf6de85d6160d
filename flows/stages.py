"""One DVC stage as one Prefect task."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.console import say
from flows.dvc import repro as pipeline
from flows.subprocess_stream import stream
from models.common.errors import InputError
from tasks.utils.cli import INPUT_ERROR


class StageFailed(RuntimeError):
    """A stage's program ended with a status other than 0 and 2; the message ends with its last
    line.
    """


def _may_help(task: Any, run: Any, state: Any) -> bool:
    """Whether trying again makes sense: never for a mistake in the input."""
    return not isinstance(state.data, InputError) and not isinstance(
        getattr(state.data, "exception", None), InputError
    )


# DVC is the cache, hence NO_CACHE; a retried stage goes on from its checkpoints.
@task(
    name="stage",
    task_run_name="{name}",
    retries=1,
    retry_delay_seconds=2,
    retry_condition_fn=_may_help,
    cache_policy=NO_CACHE,
)
def run_stage(root: Path, name: str) -> bool:
    """Bring the outputs of stage `name` up to date; returns whether there was anything to do.

    Raises InputError with the stage's own line when it ends with status 2, StageFailed for other
    failures.
    """
    logger = get_run_logger()
    if not pipeline.outdated(root, name):
        say(f"[green]✓[/] {name}: up to date")
        logger.info("%s: up to date", name)
        return False
    run_program(name, [sys.executable, "-m", "flows.dvc.repro", name, pipeline.WITH_PARENT], root)
    return True


def run_program(name: str, command: Sequence[str], root: Path) -> None:
    """Run a program in `root`, its output as the present run's log; errors as of
    :func:`run_stage`.
    """
    logger = get_run_logger()
    say(f"[bold]▶ {name}[/]")
    start = time.monotonic()
    last: list[str] = []

    def report(line: str) -> None:
        last[:] = [*last[-19:], line]
        logger.info("%s", line)

    _check(name, stream(command, root, os.environ, report), last)
    say(f"[green]✓[/] {name}: done in {_duration(time.monotonic() - start)}")


def _check(name: str, status: int, last: list[str]) -> None:
    if status == 0:
        return
    if status == INPUT_ERROR:
        errors = [line.removeprefix("error: ") for line in last if line.startswith("error: ")]
        raise InputError(errors[-1] if errors else f"stage {name} refused its input")
    ended = f"ended with status {status}" if status > 0 else f"was killed by signal {-status}"
    raise StageFailed(f"stage {name} {ended}: {last[-1] if last else 'no output'}")


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60} s"
