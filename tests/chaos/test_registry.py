"""Recording, registration and promotion are killed at every step; the registry ends as if they had not been."""

from __future__ import annotations

import hashlib
import re
import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.chaos.nursery import Nursery
from tests.chaos.project import copy_until
from tests.chaos.rows import PROMOTION, REGISTRATION, Kill

REGISTER = ["flows.register"]


@pytest.mark.parametrize("row", REGISTRATION, ids=lambda row: row.id)
def test_killed_registration(row: Kill, recorded: Path, tmp_path: Path, nursery: Nursery) -> None:
    root = copy_until(recorded, tmp_path / "project")
    output = killed_and_again(nursery, root, row)
    assert "chaos version 1" in output and re.search(row.says, output)
    check_registry(root, versions=1)


@pytest.mark.parametrize("row", PROMOTION, ids=lambda row: row.id)
def test_killed_promotion(row: Kill, rival: Path, tmp_path: Path, nursery: Nursery) -> None:
    root = copy_until(rival, tmp_path / "project")
    output = killed_and_again(nursery, root, row)
    assert "chaos version 2" in output and re.search(row.says, output)
    check_registry(root, versions=2)


def killed_and_again(nursery: Nursery, root: Path, row: Kill) -> str:
    killed = nursery.run(root, REGISTER, kill=row.point)
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    again = nursery.run(root, REGISTER, kill=row.point)
    assert again.returncode == 0, again.stdout
    return again.stdout


def check_registry(root: Path, versions: int) -> None:
    """`versions` versions, the last one champion and challenger, holding this student; nothing half done."""
    client = MlflowClient(f"sqlite:///{root}/mlruns/mlflow.db")
    (model,) = client.search_registered_models()
    found = client.search_model_versions("name = 'chaos'")
    assert sorted(int(item.version) for item in found) == list(range(1, versions + 1))
    assert {alias: int(number) for alias, number in model.aliases.items()} == {
        "champion": versions,
        "challenger": versions,
    }
    assert not any(name.endswith("pending") for name in model.tags)
    (experiment,) = [item for item in client.search_experiments() if item.name == "chaos"]
    statuses = [run.info.status for run in client.search_runs([experiment.experiment_id])]
    assert "RUNNING" not in statuses and statuses.count("FINISHED") == versions
    newest = max(found, key=lambda item: int(item.version))
    assert client.get_run(newest.run_id).info.status == "FINISHED"
    assert digests(root / "data/student") in [digests(path) for path in root.glob("mlruns/artifacts/**/student")]


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
