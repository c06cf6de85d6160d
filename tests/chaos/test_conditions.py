"""The stage that encodes prompts is killed; the rerun keeps its shards and gives the same bytes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tasks.config.written import params_text
from tests.chaos.forkserver import ForkServer
from tests.chaos.project import leftovers
from tests.chaos.rows import CONDITIONS, Kill
from tests.tasks.prompts import PROMPTS, settings
from tests.tasks.stages.test_conditions import write_teacher


def project(root: Path) -> Path:
    """A text-to-image teacher and its prompts, two to a shard."""
    (root / "in").mkdir(parents=True)
    write_teacher(root)
    (root / "in/prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    params = settings(conditions={"shard_size": 2})
    (root / "params.yaml").write_text(params_text(params, "Of the chaos tests."))
    return root


def contents(root: Path) -> dict[str, bytes]:
    folder = root / "data/conditions"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("row", CONDITIONS, ids=lambda row: row.id)
def test_killed_conditions(row: Kill, tmp_path: Path, forkserver: ForkServer) -> None:
    whole, broken = project(tmp_path / "a/project"), project(tmp_path / "b/project")
    assert forkserver.run(whole, ["conditions"]).returncode == 0
    killed = forkserver.run(broken, ["conditions"], kill=row.point)
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    assert not contents(broken)
    again = forkserver.run(broken, ["conditions"], kill=row.point)
    assert again.returncode == 0 and row.says in again.stdout, again.stdout
    assert contents(broken) == contents(whole)
    assert leftovers(broken) == []
