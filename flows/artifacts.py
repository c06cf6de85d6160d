"""What a run leaves to look at: artifacts in Prefect, and a table and two paths on the terminal."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pandas as pd
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from flows.console import say
from flows.workspace import Workspace
from tasks.params import Params
from tasks.tracking import logged_report, read_metrics

RESULTS = Path("data/evaluation")
LARGEST_IMAGE = 1_000_000  # bytes; artifacts live in Prefect's database


def publish(work: Workspace, params: Params, run_id: str) -> str:
    """Attach the table of figures, a sample grid and a link to the report to the present run.

    Returns the report's place. `run_id` is the MLflow run's, which keeps a copy of the report: the one in a worktree
    goes with it.
    """
    results = work.root / RESULTS
    table = pd.read_csv(results / "table.csv")
    rows = table.astype(object).where(table.notna(), None).to_dict(orient="records")
    create_table_artifact(rows, key="samplers", description="Quality and speed of each sampler")
    grids = [path for path in sorted((results / "grids").glob("*.png")) if path.stat().st_size <= LARGEST_IMAGE]
    for grid in grids[:1]:
        picture = base64.b64encode(grid.read_bytes()).decode()
        create_image_artifact(f"data:image/png;base64,{picture}", key="samples", description=grid.stem)
    own = (results / "report.html").resolve()
    report = logged_report(work.root, params, run_id) if work.apart else str(own)
    link = Path(report).as_uri() if report.startswith("/") else report
    create_markdown_artifact(f"[Report]({link})\n\n`{report}`", key="report")
    return report


def summary(root: Path, report: str, model: dict[str, Any], verdict: str) -> dict[str, Any]:
    """The flow's result, JSON-ready."""
    return {
        "model": model,
        "verdict": verdict,
        "root": str(root),
        "report": report,
    }


def show(result: dict[str, Any]) -> None:
    """Print the table of figures, the report's path and the registered model."""
    from tasks.evaluation import format_table  # imports torch

    model = result["model"]
    say("")
    say(format_table(read_metrics(Path(result["root"]))))
    say(f"report:  {result['report']}")
    state = "registered" if model["created"] else "registered before"
    say(f"model:   {model['name']} version {model['version']} ({state}); {result['verdict']}")
