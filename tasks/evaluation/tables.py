"""The evaluation's results as files and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from models.evaluation.metrics import Interval
from tasks.evaluation.results import Result, Row
from tasks.utils.atomic import atomic_write_json

KEPT_SAMPLES = 256


def write_outputs(result: Result, folder: Path) -> None:
    """The figures as files for people, DVC and MLflow."""
    atomic_write_json(folder / "metrics.json", metrics_of(result))
    table = table_of(result)
    table.to_csv(folder / "table.csv", index=False)
    frontier = table[table["group"].isin(["student", "untrained", "baseline"])]
    frontier[["sampler", "nfe", "kid", "kid_low", "kid_high", "frechet"]].to_csv(
        folder / "frontier.csv", index=False
    )
    path_error_of(result).to_csv(folder / "path_error.csv", index=False)
    kept = {name.replace(".", "_"): images[:KEPT_SAMPLES] for name, images in result.images.items()}
    np.savez_compressed(folder / "samples.npz", allow_pickle=False, **kept)


def metrics_of(result: Result) -> dict[str, Any]:
    """Nested figures for `dvc metrics show`: {sampler: {"nfe10": {"kid": ..., ...}}}.

    `best_training_free` repeats the best baseline; `difference` holds the student's paired KID
    differences (below 0 is better).
    """
    about = {name: getattr(result, name) for name in ("features", "samples", "real")}
    metrics: dict[str, Any] = {"evaluation": about}
    for row in result.rows:
        metrics.setdefault(row.sampler, {})[row.step_key] = figures_of(row) | _gflops(result, row)
    for nfe in result.nfe:
        for row in result.baselines(nfe)[:1]:
            metrics.setdefault("best_training_free", {})[f"nfe{nfe}"] = {
                "sampler": row.sampler,
                **figures_of(row),
            }
    for key, gap in result.differences.items():
        rival, step_key = key.split(".")
        metrics.setdefault("difference", {}).setdefault(step_key, {})[f"to_{rival}"] = _ends(
            "kid", gap
        )
    for (name, nfe), errors in result.path_error.items():
        metrics[name][f"nfe{nfe}"]["path_rmse"] = errors[-1].value
    return metrics


def figures_of(row: Row) -> dict[str, Any]:
    """One row's figures; `ms_per_image` is left out for real images."""
    figures_ = {
        "title": row.title,
        "images": row.images,
        **_ends("kid", row.kid),
        "frechet": row.frechet,
        "precision": row.precision,
        "recall": row.recall,
        "pixel_mean": row.mean,
        "pixel_std": row.std,
    }
    return figures_ if row.ms_per_image is None else {**figures_, "ms_per_image": row.ms_per_image}


def _gflops(result: Result, row: Row) -> dict[str, float]:
    return {"gflops": result.flops[row.key] / 1e9} if row.key in result.flops else {}


def table_of(result: Result) -> pd.DataFrame:
    """One line per sampler and number of calls, the best KID of each number first."""
    lines = [
        {
            "sampler": row.sampler,
            "group": row.group,
            "nfe": row.nfe,
            "spacing": result.spacing.get(row.key),
            **figures_of(row),
            "gflops": result.flops[row.key] / 1e9 if row.key in result.flops else None,
        }
        for row in sorted(result.rows, key=lambda row: (-(row.nfe or 10**9), row.kid.value))
    ]
    return pd.DataFrame(lines).astype({"nfe": "Int64"})


def path_error_of(result: Result) -> pd.DataFrame:
    """RMSE to the teacher after each coarse step on the same Brownian path."""
    lines = [
        {
            "sampler": name,
            "nfe": nfe,
            "step": step,
            "rmse": e.value,
            "rmse_low": e.low,
            "rmse_high": e.high,
        }
        for (name, nfe), errors in result.path_error.items()
        for step, e in enumerate(errors, start=1)
    ]
    return pd.DataFrame(lines, columns=["sampler", "nfe", "step", "rmse", "rmse_low", "rmse_high"])


def format_table(metrics: dict[str, Any]) -> Table:
    """metrics.json as a table for the terminal: real images and teacher first, then by steps and
    KID.
    """
    info = metrics["evaluation"]
    table = Table(
        title=f"{info['samples']} images per sampler, {info['features']} features; "
        "KID with 95 % interval",
        title_justify="left",
    )
    table.add_column("Sampler")
    for name in ("NFE", f"KID-{info['features']}", "95 %", "Frechet distance", "ms per image"):
        table.add_column(name, justify="right")
    lines = [
        (-(10**9) if key == "full" else -int(key[3:]), row["kid"], sampler, key, row)
        for sampler, steps in metrics.items()
        if sampler not in ("evaluation", "best_training_free", "difference")
        for key, row in steps.items()
    ]
    previous = None
    for order, _, sampler, key, row in sorted(lines, key=lambda line: line[:3]):
        if previous not in (None, order):
            table.add_section()
        previous = order
        table.add_row(
            row["title"],
            "-" if key == "full" else key[3:],
            f"{row['kid']:.4f}",
            f"{row['kid_low']:.4f} to {row['kid_high']:.4f}",
            f"{row['frechet']:.2f}",
            f"{row['ms_per_image']:.2f}" if "ms_per_image" in row else "-",
            style="bold" if sampler == "student" else None,
        )
    return table


def _ends(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
