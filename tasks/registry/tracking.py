"""MLflow runs: one per finished distillation, with its parameters, origins, curves, figures and
report.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

from tasks.config.schema import Params, params_dict
from tasks.registry import lineage
from tasks.registry.store import local_folder, open_store
from tasks.utils.failpoints import reach
from tasks.utils.redaction import redact
from tasks.utils.resource_usage import costs
from tasks.utils.stage_names import STAGES

OWNER, FINGERPRINT = "fewstep.owner", "fewstep.fingerprint"
FIGURES = ("*.html", "*.csv", "metrics.json")
FIGURE_FOLDERS = ("figures", "grids")
LONGEST_TAG = 5000
BATCH = 1000  # MLflow's limit of metrics in one call


@dataclass(frozen=True)
class TrackedRun:
    """An MLflow run's id, and whether it was made now (False: the same results had one already)."""

    run_id: str
    created: bool


def track_run(root: Path, params: Params, prefect_run: str | None = None) -> TrackedRun:
    """Record the finished distillation in data/ as an MLflow run, or find the run that has recorded
    it.

    Raises InputError if the stages have not all run. A failure on the way leaves a run marked
    FAILED.
    """
    hashes = lineage.stage_hashes(root)
    client = open_store(root, params)
    experiment = _experiment(client, root, params)
    reap(client, experiment)
    fingerprint = lineage.run_fingerprint(hashes)
    found = client.search_runs(
        [experiment],
        f"tags.`{FINGERPRINT}` = '{fingerprint}' and attributes.status = 'FINISHED'",
        max_results=1,
    )
    if found:
        return TrackedRun(found[0].info.run_id, created=False)
    tags = _tags(root, hashes) | {FINGERPRINT: fingerprint}
    if prefect_run:
        tags["prefect.flow_run"] = prefect_run
    with _run(client, experiment, {name: redact(value) for name, value in tags.items()}) as run_id:
        reach("tracking.created")
        _log_params(client, run_id, params)
        _log_trajectories(client, run_id, root, hashes["trajectories"])
        _log_metrics(client, run_id, root)
        reach("tracking.metrics")
        _log_figures(client, run_id, root)
    return TrackedRun(run_id, created=True)


def reap(client: MlflowClient, experiment: str) -> list[str]:
    """Mark as FAILED the RUNNING runs whose process, on this machine, has ended; returns their
    ids.
    """
    stale = [
        run.info.run_id
        for run in client.search_runs([experiment], "attributes.status = 'RUNNING'")
        if ended(run.data.tags.get(OWNER, ""))
    ]
    for run_id in stale:
        client.set_terminated(run_id, status="FAILED")
    return stale


def read_metrics(root: Path) -> dict[str, Any]:
    """The evaluation's metrics.json."""
    return dict(json.loads((root / "data/evaluation/metrics.json").read_text()))


def logged_report(root: Path, params: Params, run_id: str) -> str:
    """Where the run keeps its report: an absolute path, or the address on a tracking server."""
    return f"{open_store(root, params).get_run(run_id).info.artifact_uri}/report.html".removeprefix(
        "file://"
    )


def run_page(root: Path, params: Params, run_id: str, pages: str | None) -> str | None:
    """The run's address in the MLflow UI: those of the tracking server, else those at `pages`;
    None without either.
    """
    uri = params.registration.tracking_uri
    server = uri if uri and uri.startswith("http") else pages
    if not server:
        return None
    experiment = open_store(root, params).get_run(run_id).info.experiment_id
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings with dotted names: {"a": {"b": 1}} -> ("a.b", 1)."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


@contextmanager
def _run(client: MlflowClient, experiment: str, tags: dict[str, str]) -> Iterator[str]:
    run = client.create_run(
        experiment,
        tags=tags | {OWNER: owner()},
        run_name=f"distill-{time.strftime('%Y%m%d-%H%M%S')}",
    )
    status = "FAILED"
    try:
        yield run.info.run_id
        status = "FINISHED"
    finally:
        client.set_terminated(run.info.run_id, status=status)


def _experiment(client: MlflowClient, root: Path, params: Params) -> str:
    name = params.registration.name
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    local = params.registration.tracking_uri is None
    location = str(local_folder(root) / "artifacts" / name) if local else None
    return str(client.create_experiment(name, artifact_location=location))


def _tags(root: Path, hashes: dict[str, str]) -> dict[str, str]:
    student = json.loads((root / "data/student/student.json").read_text())
    diagnostics = {f"student.{name}": str(value)[:LONGEST_TAG] for name, value in flatten(student)}
    record = root / "data/teacher/teacher.json"
    if record.is_file():
        diagnostics["teacher.fingerprint"] = str(json.loads(record.read_text()).get("fingerprint"))
    return (
        lineage.git_state(root)
        | {f"dvc.{name}": value for name, value in hashes.items()}
        | diagnostics
    )


def _log_params(client: MlflowClient, run_id: str, params: Params) -> None:
    entries = [Param(name, redact(str(value))) for name, value in flatten(params_dict(params))]
    for start in range(0, len(entries), 100):  # MLflow's limit of params in one call
        client.log_batch(run_id, params=entries[start : start + 100])


def _log_trajectories(client: MlflowClient, run_id: str, root: Path, digest: str) -> None:
    source = json.dumps({"dvc": "data/trajectories", "md5": digest, **lineage.git_state(root)})
    dataset = Dataset(name="trajectories", digest=digest, source_type="dvc", source=source)
    client.log_inputs(
        run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
    )


def _log_metrics(client: MlflowClient, run_id: str, root: Path) -> None:
    now = int(time.time() * 1000)
    entries = [
        Metric(name, float(value), now, 0)
        for name, value in flatten(read_metrics(root))
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    entries += [Metric(name, value, now, 0) for name, value in costs(root, STAGES).items()]
    entries += _curve(root / "data/student/history.csv", now)
    for start in range(0, len(entries), BATCH):
        client.log_batch(run_id, metrics=entries[start : start + BATCH])


def _curve(path: Path, now: int) -> list[Metric]:
    """The training curve: columns of history.csv over its column `step`; gaps are left out."""
    if not path.is_file():
        return []
    table = pd.read_csv(path).select_dtypes("number")
    steps = table.pop("step") if "step" in table else pd.Series(range(len(table)))
    return [
        Metric(f"train.{name}", float(value), now, int(step))
        for name in table
        for step, value in zip(steps, table[name], strict=True)
        if math.isfinite(value)
    ]


def _log_figures(client: MlflowClient, run_id: str, root: Path) -> None:
    results = root / "data/evaluation"
    files: Sequence[Path] = [path for pattern in FIGURES for path in sorted(results.glob(pattern))]
    for path in [*files, root / "params.yaml", root / "dvc.lock"]:
        if path.is_file():
            client.log_artifact(run_id, str(path))
    for name in FIGURE_FOLDERS:
        if (results / name).is_dir():
            client.log_artifacts(run_id, str(results / name), name)


def owner() -> str:
    """This process, distinct from every other one: host, id and start time."""
    return f"{socket.gethostname()}|{os.getpid()}|{psutil.Process().create_time():.2f}"


def ended(identity: str) -> bool:
    """Whether the process of that :func:`owner`, on this machine, is gone."""
    host, _, rest = identity.partition("|")
    pid, _, started = rest.partition("|")
    if host != socket.gethostname() or not pid.isdigit():
        return False  # another machine's run: cannot be known here
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" != started
    except psutil.NoSuchProcess:
        return True
