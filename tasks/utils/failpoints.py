"""Named points in the program at which a test can kill it for real, to show that the next run goes
on.

`reach("training.step")` does nothing unless the environment says otherwise:

    FEWSTEP_KILL_AT=training.step:3   the process that reaches the point for the third time gets
    SIGKILL
    FEWSTEP_HOLD_AT=training.step:3   it waits there instead, until FILE.go exists, so that another
    can be killed
    FEWSTEP_KILL_MARK=FILE            where "point pid" is written first; nothing happens where
    FILE exists already,
                                      so that a rerun in the same environment goes on
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

KILL_AT, HOLD_AT, MARK = "FEWSTEP_KILL_AT", "FEWSTEP_HOLD_AT", "FEWSTEP_KILL_MARK"
LONGEST_HOLD = 600.0  # seconds

_reached: Counter[str] = Counter()


def reach(point: str) -> None:
    """Say that the program is at `point`; kills or holds this process if a test has asked for
    it.
    """
    for action in (KILL_AT, HOLD_AT):
        wanted = os.environ.get(action)
        if wanted is not None:
            _act(point, action, wanted)


def release(mark: Path) -> None:
    """Let the process go on that is held with the mark file `mark`."""
    _go(mark).touch()


def _act(point: str, action: str, wanted: str) -> None:
    name, _, count = wanted.partition(":")
    if name != point:
        return
    _reached[f"{action} {point}"] += 1
    mark = Path(os.environ[MARK])
    if _reached[f"{action} {point}"] != int(count or 1) or not _first(mark, point):
        return
    if action == KILL_AT:
        os.kill(os.getpid(), signal.SIGKILL)
    deadline = time.monotonic() + LONGEST_HOLD
    while not _go(mark).exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def _first(mark: Path, point: str) -> bool:
    try:
        handle = os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        file.write(f"{point} {os.getpid()}\n")
    return True


def _go(mark: Path) -> Path:
    return mark.with_name(f"{mark.name}.go")
