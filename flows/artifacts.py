"""What a run leaves to look at: artifacts in Prefect, and a table and two paths on the terminal."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pandas as pd
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from flows.console import say
from flows.dvc.worktree import Workspace
from tasks.config.schema import Params
from tasks.registry.tracking import logged_report, read_metrics, run_page
from tasks.utils.environment import MLFLOW_PAGES

RESULTS = Path("data/evaluation")
LARGEST_IMAGE = 1_000_000  # bytes; artifacts live in Prefect's database
COLUMNS = {
    "sampler": "sampler",
    "nfe": "network calls",
    "kid": "KID",
    "kid_low": "95 % from",
    "kid_high": "to",
}


def publish(work: Workspace, params: Params, run_id: str) -> str:
    """Attach the figures, as a table and as pictures, and the way to the report to the present run.

    Returns the report's place. `run_id` is the MLflow run's, which keeps a copy of the report: the
    one in a worktree goes with it.
    """
    results = work.root / RESULTS
    table = pd.read_csv(results / "table.csv")
    rows = table.astype(object).where(table.notna(), None).to_dict(orient="records")
    create_table_artifact(rows, key="samplers", description="Quality and speed of each sampler")
    grids = [
        path
        for path in sorted((results / "grids").glob("*.png"))
        if path.stat().st_size <= LARGEST_IMAGE
    ]
    for key, picture in [
        ("samples", grids[:1]),
        ("quality", sorted(results.glob("figures/frontier.png"))),
    ]:
        for path in picture:
            content = base64.b64encode(path.read_bytes()).decode()
            create_image_artifact(
                f"data:image/png;base64,{content}", key=key, description=path.stem
            )
    own = (results / "report.html").resolve()
    report = logged_report(work.root, params, run_id) if work.apart else str(own)
    pages = os.environ.get(MLFLOW_PAGES)
    page = run_page(work.root, params, run_id, pages)
    inside = Path(report).is_relative_to(work.project)
    place = str(Path(report).relative_to(work.project)) if inside else report
    create_markdown_artifact(
        report_text(table, page, place), key="report", description="The report, and its figures"
    )
    return report


def report_text(table: pd.DataFrame, page: str | None, place: str) -> str:
    """Markdown for the Prefect UI, which open no files: a link to the report in MLflow's, its
    place, its figures.
    """
    way = (
        f"## [Open the report]({page}/artifacts/report.html)\n\n[MLflow run]({page})"
        if page
        else (
            "## Report\n\n`make up` or `make ui` starts the MLflow UI, where the run shows its "
            "report."
        )
    )
    shown = table[[name for name in COLUMNS if name in table]].rename(columns=COLUMNS)
    figures = shown.astype(object).map(_cell).to_markdown(index=False, disable_numparse=True)
    return f"{way}\n\nIn the project's folder: `{place}`\n\n{figures}\n"


def _cell(value: Any) -> str:
    if pd.isna(value):
        return ""
    return value if isinstance(value, str) else f"{value:.4g}"


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
    from tasks.evaluation.tables import format_table  # imports torch

    model = result["model"]
    say("")
    say(format_table(read_metrics(Path(result["root"]))))
    say(f"report:  {result['report']}")
    state = "registered" if model["created"] else "registered before"
    say(f"model:   {model['name']} version {model['version']} ({state}); {result['verdict']}")
