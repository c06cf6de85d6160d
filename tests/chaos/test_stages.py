"""Every stage is killed at its named points; the rerun gives the same student, byte for byte."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.forkserver import ForkServer
from tests.chaos.project import STAGES, leftovers, result
from tests.chaos.random_kills import figures
from tests.chaos.rows import STAGES as ROWS
from tests.chaos.rows import Kill


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_killed_stage(
    row: Kill, made: Path, before: Callable[[str], Path], forkserver: ForkServer
) -> None:
    root = before(
        "" if row.point == "atomic.between" else row.stage
    )  # there is an old one to be replaced
    killed = forkserver.run(root, [row.stage], kill=row.point)
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    assert (root.parent / "mark").read_text().startswith(row.point.partition(":")[0])

    rest = STAGES[STAGES.index(row.stage) : STAGES.index("student") + 1] or (row.stage,)
    again = forkserver.run(root, rest, kill=row.point)
    assert again.returncode == 0, again.stdout
    assert re.search(row.says, again.stdout, re.M), again.stdout
    assert result(root) == result(made)
    if row.stage == "evaluation":
        assert figures(root) == figures(made)
    assert leftovers(root) == []
