"""Ray nodes are lost amid the work, with a common folder and without: the bytes are those of an
undisturbed run.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tasks.training.ray_cluster import CODE
from tasks.utils.failpoints import HOLD_AT, MARK, release
from tests.chaos.project import STAGES, environ, execute, make_project, result
from tests.paths import PROJECT
from tests.team.machine import Machine
from tests.team.nodes import ADDRESSES, Nodes, cluster
from tests.team.site import wait

pytestmark = [pytest.mark.team, pytest.mark.slow, pytest.mark.timeout(3600)]
BIN = Path(sys.executable).parent
both = pytest.mark.parametrize("common", [True, False], ids=["common folder", "no common folder"])


@pytest.fixture(scope="module")
def until_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which all before the trajectories is made."""
    root = make_project(tmp_path_factory.mktemp("nodes") / "project")
    for stage in STAGES[: STAGES.index("trajectories")]:
        done = execute(root, [sys.executable, "-m", f"tasks.stages.{stage}"])
        assert done.returncode == 0, done.stderr
    return root


def made(root: Path, stage: str, *settings: str) -> None:
    done = execute(root, [sys.executable, "-m", f"tasks.stages.{stage}", *settings])
    assert done.returncode == 0, done.stderr


def lose_a_node(
    root: Path,
    folder: Path,
    point: str,
    *command: str,
    node: str | None = None,
    pause: float = 0,
    status: int = 0,
    common: bool = True,
) -> str:
    """Run a stage on three nodes and kill the node whose worker is held at `point`, or the one
    named, some seconds before the worker goes on; what the stage printed. It has to end with
    `status`. Without a `common` folder the working nodes see neither the project nor its code.
    """
    mark = folder / "mark"
    env = environ(root, more={HOLD_AT: point, MARK: str(mark)})
    env["PATH"] = f"{BIN}:{env['PATH']}"
    (root / ".venv").symlink_to(BIN.parent)
    hidden = () if common else (root, *(PROJECT / name for name in CODE))
    with cluster(Machine(root, env), folder / "ray", 0, hidden) as nodes:
        log = folder / "driver.log"
        with log.open("wb") as output:
            driver = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=root,
                env=nodes.env | {"RAY_ADDRESS": nodes.address},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            wait(mark.exists, 600, lambda: _told(nodes, log))
            nodes.kill(node or nodes.of(int(mark.read_text().split()[1])))
            time.sleep(pause)
            release(mark)
            assert driver.wait(timeout=900) == status, log.read_text()
        finally:
            driver.kill()
        assert len(nodes.processes.running) == 2
    return log.read_text()


def _told(nodes: Nodes, log: Path) -> str:
    return log.read_text() + nodes.processes.log("node-127.0.0.2")


def shards(root: Path) -> dict[str, bytes]:
    folder = root / "data/trajectories"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@both
def test_node_lost_in_trajectories(until_teacher: Path, tmp_path: Path, common: bool) -> None:
    alone, spread = (shutil.copytree(until_teacher, tmp_path / name) for name in ("one", "three"))
    made(alone, "trajectories")
    stage = "tasks.stages.trajectories"
    command = (stage, "trajectories.workers=4")
    told = lose_a_node(spread, tmp_path, "trajectories.paths:1", *command, common=common)
    assert shards(spread) == shards(alone)
    assert "a Ray worker was lost; its work is done again" in told


def test_head_lost(until_teacher: Path, tmp_path: Path) -> None:
    alone, spread = (shutil.copytree(until_teacher, tmp_path / name) for name in ("one", "three"))
    made(alone, "trajectories")
    stage = ("tasks.stages.trajectories", "trajectories.workers=2")
    told = lose_a_node(
        spread, tmp_path, "trajectories.paths:2", *stage, node=ADDRESSES[0], pause=80, status=1
    )
    assert told.splitlines()[-1].startswith("error: the Ray cluster at 127.0.0.2:")
    kept = len(list((spread / ".fewstep/scratch/trajectories").rglob("*.npy")))
    assert kept
    made(spread, "trajectories")
    assert shards(spread) == shards(alone)


@both
def test_node_lost_in_evaluation(until_teacher: Path, tmp_path: Path, common: bool) -> None:
    alone = shutil.copytree(until_teacher, tmp_path / "one")
    for stage in STAGES[STAGES.index("trajectories") : STAGES.index("evaluation")]:
        made(alone, stage)
    spread = shutil.copytree(alone, tmp_path / "three")
    made(alone, "evaluation", size := "evaluation.batch_size=4")
    stage = ("tasks.stages.evaluation", size, "evaluation.workers=4")
    told = lose_a_node(spread, tmp_path, "evaluation.batch:2", *stage, common=common)
    pd.testing.assert_frame_equal(figures(spread), figures(alone), check_exact=True)
    assert "a Ray worker was lost; its work is done again" in told


def figures(root: Path) -> pd.DataFrame:
    """The table without the milliseconds."""
    return pd.read_csv(root / "data/evaluation/table.csv").drop(columns="ms_per_image")


@both
def test_node_lost_in_training(until_teacher: Path, tmp_path: Path, common: bool) -> None:
    undisturbed = shutil.copytree(until_teacher, tmp_path / "one")
    made(undisturbed, "trajectories")
    spread = shutil.copytree(undisturbed, tmp_path / "three")
    made(undisturbed, "student", "student.workers=2")
    stage = ("tasks.stages.student", "student.workers=2")
    told = lose_a_node(spread, tmp_path, "training.step:3", *stage, common=common)
    assert result(spread) == result(undisturbed)
    assert "a training worker was lost; going on from the last checkpoint" in told
