"""The evaluation's results as files and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from models.evaluation.base import Interval
from tasks.evaluation.law_errors import law_rows
from tasks.evaluation.results import Column, Result, Row, SamplerKey
from tasks.utils.atomic import atomic_write_json

LAW = ("mean_error", "covariance_error", "ks_mean", "ks_max", "ks_within")


def write_outputs(result: Result, folder: Path) -> None:
    """The figures as files for people, DVC and MLflow."""
    atomic_write_json(folder / "metrics.json", metrics_of(result))
    table = table_of(result)
    table.to_csv(folder / "table.csv", index=False)
    frontier = table[table["group"].isin(["student", "untrained", "baseline"])]
    shown = ["sampler", "nfe", *(name for name in figure_names(result) if name in frontier)]
    frontier[shown].dropna(subset=[result.criterion]).to_csv(folder / "frontier.csv", index=False)
    path_error_of(result).to_csv(folder / "path_error.csv", index=False)
    if result.law:
        pd.DataFrame(law_rows(result)).to_csv(folder / "law.csv", index=False)
    kept = {key.label: images for key, images in result.images.items()}
    if result.prompts is not None:
        atomic_write_json(folder / "prompts.json", list(result.prompts))
    np.savez_compressed(folder / "samples.npz", allow_pickle=False, **kept)


def figure_names(result: Result) -> list[str]:
    """The names of the figures that say better or worse, with those of their intervals' ends."""
    names = []
    for name, column in result.columns.items():
        if column.lower_is_better is not None:
            ends = (f"{name}_low", f"{name}_high") if _has_ends(result, column) else ()
            names += [name, *ends]
    return names


def metrics_of(result: Result) -> dict[str, Any]:
    """Nested figures for `dvc metrics show`: {sampler: {"nfe10": {"kid": ..., ...}}}.

    `evaluation` says against what was measured, and by which metric is decided;
    `best_training_free` repeats the best baseline; `difference` holds the student's paired
    differences by the criterion; `left_out` the baselines that could not run, with the reason.
    """
    metrics: dict[str, Any] = {"evaluation": about(result)}
    for row in result.rows:
        found = figures_of(result, row) | _gflops(result, row)
        metrics.setdefault(row.sampler, {})[row.key.steps] = found
    for nfe in result.nfe:
        for row in result.baselines(nfe)[:1]:
            best = {"sampler": row.sampler, **figures_of(result, row)}
            metrics.setdefault("best_training_free", {})[row.key.steps] = best
    for (student, rival), gap in result.differences.items():
        name = f"to_{rival_name(result, student, rival)}"
        of_steps = metrics.setdefault("difference", {}).setdefault(student.steps, {})
        of_steps[name] = _ends(result.criterion, gap)
    for key, errors in result.path_error.items():
        metrics[key.name][key.steps]["path_rmse"] = errors[-1].value
    for key, reason in result.left_out.items():
        metrics.setdefault("left_out", {}).setdefault(key.name, {})[key.steps] = reason
    for line in law_rows(result):
        steps = SamplerKey(line["sampler"], line["nfe"]).steps
        metrics[line["sampler"]][steps]["law"] = {name: line[name] for name in LAW}
    if result.load_back:
        metrics["load_back"] = result.load_back
    return metrics


def about(result: Result) -> dict[str, Any]:
    """What was measured against, and how samplers are ranked."""
    column = result.column
    return {
        **({"data": result.data} if result.data != "images" else {}),
        **({"features": result.features} if result.features else {}),
        "samples": result.samples,
        "real": result.real,
        **({"against": result.against} if result.against != "real" else {}),
        "criterion": column.name,
        "lower_is_better": column.lower_is_better,
        **({"content": result.content} if result.content else {}),
    }


def rival_name(result: Result, student: SamplerKey, rival: SamplerKey) -> str:
    """What the student is compared with: teacher, untrained, best_at_5, or another sampler."""
    row = result.row(rival.name, rival.nfe)
    if row.group in ("teacher", "untrained"):
        return row.group
    if row.group == "baseline":
        return f"best_at_{rival.nfe}"
    return rival.name if rival.nfe == student.nfe else f"{rival.name}_at_{rival.nfe}"


def figures_of(result: Result, row: Row) -> dict[str, Any]:
    """One row's figures; its number of images or series under that name; `ms_per_image`, or
    `ms_per_series`, is left out for real ones.
    """
    found: dict[str, Any] = {"title": row.title, result.data: row.images}
    for name, interval in row.figures.items():
        whole = _has_ends(result, result.columns[name])
        found |= _ends(name, interval) if whole else {name: interval.value}
    ms = {} if row.ms_per_image is None else {f"ms_per_{result.one}": row.ms_per_image}
    return found | ms


def _has_ends(result: Result, column: Column) -> bool:
    return column.shows_interval or column.name == result.criterion


def _gflops(result: Result, row: Row) -> dict[str, float]:
    return {"gflops": result.flops[row.key] / 1e9} if row.key in result.flops else {}


def table_of(result: Result) -> pd.DataFrame:
    """One line per sampler and number of calls, the best of each number first; last the baselines
    that could not run, with the reason in `left_out`.
    """
    lines = [
        {
            "sampler": row.sampler,
            "group": row.group,
            "nfe": row.nfe,
            "spacing": result.spacing.get(row.key),
            **figures_of(result, row),
            "gflops": result.flops[row.key] / 1e9 if row.key in result.flops else None,
        }
        for row in sorted(result.rows, key=lambda row: (-(row.nfe or 10**9), result.cost(row)))
    ]
    lines += [
        {"sampler": key.name, "group": "baseline", "nfe": key.nfe, "left_out": reason}
        for key, reason in result.left_out.items()
    ]
    return pd.DataFrame(lines).astype({"nfe": "Int64"})


def path_error_of(result: Result) -> pd.DataFrame:
    """RMSE to the teacher after each coarse step on the same Brownian path."""
    lines = [
        {
            "sampler": key.name,
            "nfe": key.nfe,
            "step": step,
            "rmse": e.value,
            "rmse_low": e.low,
            "rmse_high": e.high,
        }
        for key, errors in result.path_error.items()
        for step, e in enumerate(errors, start=1)
    ]
    return pd.DataFrame(lines, columns=["sampler", "nfe", "step", "rmse", "rmse_low", "rmse_high"])


NOT_SAMPLERS = ("evaluation", "best_training_free", "difference", "left_out", "load_back")


def format_table(metrics: dict[str, Any]) -> Table:
    """metrics.json as a table for the terminal: real images and teacher first, then by steps, the
    best first.
    """
    info = metrics["evaluation"]
    criterion = info.get("criterion", "kid")
    sign = 1 if info.get("lower_is_better", True) else -1
    data, one = info.get("data", "images"), "series" if "data" in info else "image"
    features = f", {info['features']} features" if "features" in info else ""
    features += " against the teacher's own images" if info.get("against") == "teacher" else ""
    table = Table(
        title=f"{info['samples']} {data} per sampler{features}; "
        f"{LABELS.get(criterion, criterion)} with 95 % interval",
        title_justify="left",
    )
    table.add_column("Sampler")
    headings = [LABELS.get(criterion, criterion), "95 %", *_others(metrics, criterion).values()]
    for name in ("NFE", *headings, f"ms per {one}"):
        table.add_column(name, justify="right")
    lines = [
        (-(10**9) if key == "full" else -int(key[3:]), sign * row[criterion], sampler, key, row)
        for sampler, steps in metrics.items()
        if sampler not in NOT_SAMPLERS
        for key, row in steps.items()
    ]
    previous = None
    for order, _, sampler, key, row in sorted(lines, key=lambda line: line[:3]):
        if previous not in (None, order):
            table.add_section()
        previous = order
        table.add_row(*_cells(metrics, row, key), style="bold" if sampler == "student" else None)
    for name, reasons in metrics.get("left_out", {}).items():
        for reason in dict.fromkeys(reasons.values()):
            steps = ", ".join(key[3:] for key, why in reasons.items() if why == reason)
            table.add_row(f"{name}, left out: {reason}", steps, style="dim")
    table.caption, table.caption_justify = _gain(metrics) or None, "left"
    return table


LABELS = {
    "kid": "KID",
    "frechet": "Fréchet distance",
    "precision": "Precision",
    "recall": "Recall",
    "sig_w1": "Sig-W1",
    "sig_mmd": "Sig-MMD²",
    "discriminative": "Discriminative",
    "marginal": "Marginal W1",
    "acf": "Autocorrelation",
}
BESIDE = {"kid": 2, "frechet": 2, "discriminative": 3, "acf": 3}  # the criterion; decimals


def _others(metrics: dict[str, Any], criterion: str) -> dict[str, str]:
    """The figures shown beside the criterion, as far as they were measured."""
    there = next(iter(metrics["student"].values()))
    return {n: LABELS[n] for n in BESIDE if n in there and n != criterion}


def _gain(metrics: dict[str, Any]) -> str:
    """The student's paired differences to its untrained self in the criterion, fewest steps
    first; "" where there are none.
    """
    criterion, lines = metrics["evaluation"].get("criterion", "kid"), []
    for steps, rivals in sorted(metrics.get("difference", {}).items(), key=lambda i: int(i[0][3:])):
        if gap := rivals.get("to_untrained"):
            value, low, high = (gap[f"{criterion}{end}"] for end in ("", "_low", "_high"))
            lines.append(f"{steps[3:]} calls: {value:+.4f} (95 % {low:+.4f} to {high:+.4f})")
    if not lines:
        return ""
    return "\n".join([f"{LABELS.get(criterion, criterion)}, student minus untrained:", *lines])


def _cells(metrics: dict[str, Any], row: dict[str, Any], key: str) -> list[str]:
    criterion = metrics["evaluation"].get("criterion", "kid")
    ends = (row.get(f"{criterion}_{end}", row[criterion]) for end in ("low", "high"))
    others = [f"{row[name]:.{BESIDE[name]}f}" for name in _others(metrics, criterion)]
    times = [row[name] for name in ("ms_per_image", "ms_per_series") if name in row]
    ms = f"{times[0]:.2f}" if times else "-"
    interval = " to ".join(f"{end:.4f}" for end in ends)
    steps = "-" if key == "full" else key[3:]
    return [row["title"], steps, f"{row[criterion]:.4f}", interval, *others, ms]


def _ends(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
