"""Kills at random times: `python -m tests.chaos.random_kills [--cases N] [--seed S]`, or `make
chaos-random N=50`.

Each case is a new project whose run is killed up to three times in a row: after a random time, its
whole process tree or one process of it. Then it is run to its end, and has to leave what an
undisturbed run leaves: the student byte for byte, the figures, one registered version, no
temporary files and no processes. The cases depend on the seed alone, up to the machine's speed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.checks import check_registry
from tests.chaos.project import environ, leftovers, make_project, result

RUN = [sys.executable, "-m", "flows.distill"]
MOST_KILLS = 3
LONGEST = 1800.0  # seconds of one run, on a busy machine
LINGER = 30.0  # seconds in which processes of a killed run must have ended
TIMINGS = {"ms_per_image", "seconds"}


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run leaves, and the seconds it takes."""

    student: dict[str, bytes]
    figures: Any
    seconds: float


def reference(place: Path) -> Reference:
    """Make a project and run it once."""
    root = make_project(place / "reference")
    start = time.monotonic()
    with started(root) as run:
        status = run.wait(LONGEST)
    seconds = time.monotonic() - start
    assert status == 0, output(root)
    check(root, None)
    return Reference(result(root), figures(root), seconds)


def case(place: Path, number: int, seed: int, expected: Reference) -> list[str]:
    """One project, killed and run to its end; returns what was killed. AssertionError tells what
    differs.
    """
    chance = random.Random(f"{seed}/{number}")
    root = make_project(place / f"case{number}")
    told = []
    for _ in range(chance.randint(1, MOST_KILLS)):
        told.append(kill_once(root, chance, expected.seconds))
    with started(root) as run:
        status = run.wait(LONGEST)
    assert status == 0, f"the last run ended with status {status}:\n{output(root)}"
    check(root, expected)
    shutil.rmtree(root)
    return told


def kill_once(root: Path, chance: random.Random, seconds: float) -> str:
    """Start a run, kill something of it after a random time, and wait until all has ended."""
    wait, whole, pick = chance.uniform(0, seconds), chance.random() < 0.5, chance.random()
    with started(root) as run:
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(wait)
            return f"nothing: done before {wait:.1f} s"
        family = tree(run.pid)
        chosen = family if whole else [family[int(pick * len(family))]]
        names = ", ".join(name(process) for process in chosen) if not whole else "all"
        for process in chosen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        run.wait(LONGEST)
    assert "Traceback" not in output(root) or whole or run.returncode < 0, output(root)
    return f"{names} of {len(family)} processes after {wait:.1f} s, status {run.returncode}"


@contextlib.contextmanager
def started(root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run of the project; at the end none of its processes may be left."""
    settings = {"OMP_NUM_THREADS": "1"}
    with root.with_suffix(".log").open("wb") as log:
        run = subprocess.Popen(
            RUN,
            cwd=root,
            env=environ(root, more=settings),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield run
        deadline = time.monotonic() + LINGER
        while (left := inside(root)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not left, f"still there after {LINGER:.0f} s: {', '.join(map(name, left))}"
    finally:
        for process in [*tree(run.pid), *inside(root)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        run.wait()


def check(root: Path, expected: Reference | None) -> None:
    """What a finished run leaves."""
    check_registry(root, versions=1)
    assert leftovers(root) == []
    if expected is not None:
        assert result(root) == expected.student, "another student than without kills"
        assert figures(root) == expected.figures, "other figures than without kills"


def figures(root: Path) -> Any:
    """metrics.json without what depends on the machine's load."""

    def plain(tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        return {key: plain(value) for key, value in tree.items() if key not in TIMINGS}

    return plain(json.loads((root / "data/evaluation/metrics.json").read_text()))


def tree(pid: int) -> list[psutil.Process]:
    """The process and all below it, oldest first."""
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def inside(root: Path) -> list[psutil.Process]:
    """Live processes that work in the project."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == root:
                found.append(process)
    return found


def name(process: psutil.Process) -> str:
    """The module or program that it runs."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return "an ended process"
    if "-m" in words:
        return " ".join(words[words.index("-m") + 1 :][:2])
    return " ".join(words)[:60] or "an ended process"


def output(root: Path) -> str:
    """The end of the latest run's output."""
    return "\n".join(root.with_suffix(".log").read_text(errors="replace").splitlines()[-40:])


def main(argv: list[str] | None = None) -> int:
    """Run the cases; returns 1 if any fails. Projects of failed cases are kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.random_kills")
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    arguments = parser.parse_args(argv)
    place = Path(tempfile.mkdtemp(prefix="fewstep-chaos-"))
    expected = reference(place)
    print(f"seed {arguments.seed}; an undisturbed run takes {expected.seconds:.0f} s", flush=True)
    failed = 0
    for number in range(arguments.first, arguments.first + arguments.cases):
        try:
            told = case(place, number, arguments.seed, expected)
            print(f"case {number}: ok; killed {'; '.join(told)}", flush=True)
        except AssertionError as error:
            failed += 1
            print(f"case {number}: FAILED in {place}/case{number}: {error}", flush=True)
    print(f"{arguments.cases - failed} of {arguments.cases} cases ended as without kills")
    if not failed:
        shutil.rmtree(place)
    return int(failed > 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
