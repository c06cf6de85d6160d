"""What the rows look at, and how they break a file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mlflow import MlflowClient


def one_error(output: str) -> str:
    """The only line that speaks of an error; no traceback beside it."""
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in output, output
    return lines[0]


def flip(path: Path) -> None:
    """Change one bit in the middle of a file; size and time stay."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def store_of(root: Path) -> MlflowClient:
    uri = f"sqlite:///{root}/mlruns/mlflow.db"
    return MlflowClient(uri, uri)


def check_registry(root: Path, versions: int) -> None:
    """`versions` versions, the last one champion and challenger, holding this student; nothing half
    done.
    """
    client = store_of(root)
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
    assert digests(root / "data/student") in [
        digests(path) for path in root.glob("mlruns/artifacts/**/student")
    ]


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
