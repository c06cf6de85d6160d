"""Recording, registration and promotion are killed at every step; the registry ends as if they had
not been.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from flows.dvc.params_file import apply_overrides
from tests.chaos.checks import check_registry, digests, flip, one_error, store_of
from tests.chaos.forkserver import ForkServer
from tests.chaos.project import copy_until
from tests.chaos.rows import PROMOTION, REGISTRATION, Kill

REGISTER = ["flows.register"]
PROMOTE_NEWEST = "tests.chaos.promote_newest"


@pytest.mark.parametrize("row", REGISTRATION, ids=lambda row: row.id)
def test_killed_registration(
    row: Kill, recorded: Path, tmp_path: Path, forkserver: ForkServer
) -> None:
    root = copy_until(recorded, tmp_path / "project")
    output = killed_and_again(forkserver, root, row)
    assert "chaos version 1" in output and re.search(row.says, output)
    check_registry(root, versions=1)


@pytest.mark.parametrize("row", PROMOTION, ids=lambda row: row.id)
def test_killed_promotion(row: Kill, rival: Path, tmp_path: Path, forkserver: ForkServer) -> None:
    root = copy_until(rival, tmp_path / "project")
    output = killed_and_again(
        forkserver, root, row, champion=1 if row.point == "promotion.announced" else 2
    )
    assert "chaos version 2" in output and re.search(row.says, output)
    check_registry(root, versions=2)


def test_damaged_registry(rival: Path, tmp_path: Path, forkserver: ForkServer) -> None:
    """One bit of a version that is about to be promoted is wrong: it is neither promoted nor
    served, and made again.
    """
    root = copy_until(rival, tmp_path / "project")
    params = (root / "params.yaml").read_text()
    apply_overrides(root / "params.yaml", ["registration.promote=false"])
    assert forkserver.run(root, REGISTER).returncode == 0
    (root / "params.yaml").write_text(params)
    client = store_of(root)
    folder = newest_artifacts(root)
    flip(next(folder.glob("unet/*.safetensors")))
    refused = forkserver.run(root, [PROMOTE_NEWEST])
    line = one_error(refused.stdout)
    assert (
        refused.returncode == 2
        and "version 2: files in the registry are not those that were registered" in line
    )
    assert line.endswith("version 1 stays champion")
    with pytest.raises(MlflowException, match="they are damaged; use another version"):
        mlflow.pyfunc.load_model(str(folder.parents[1]))
    assert client.get_model_version_by_alias("chaos", "champion").version == 1
    again = forkserver.run(root, REGISTER)
    assert again.returncode == 0 and "it is registered again" in again.stdout, again.stdout
    assert "chaos version 3 (registered)" in again.stdout
    assert client.get_model_version_by_alias("chaos", "champion").version == 3
    assert digests(newest_artifacts(root)) == digests(root / "data/student")


def newest_artifacts(root: Path) -> Path:
    folders = [
        path
        for path in root.glob("mlruns/artifacts/**/artifacts/student")
        if (path / "unet").is_dir()
    ]
    return max(folders, key=lambda path: path.stat().st_mtime_ns)


def killed_and_again(
    forkserver: ForkServer, root: Path, row: Kill, champion: int | None = None
) -> str:
    killed = forkserver.run(root, REGISTER, kill=row.point)
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    if champion is not None:
        assert store_of(root).get_model_version_by_alias("chaos", "champion").version == champion
    again = forkserver.run(root, REGISTER, kill=row.point)
    assert again.returncode == 0, again.stdout
    return again.stdout
