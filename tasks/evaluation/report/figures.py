"""Pictures of an evaluation: the frontier, path errors, the training curve and sample grids."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from models.sampling.baselines import title as baseline_title
from tasks.evaluation.report import pictures
from tasks.evaluation.report.series_figures import figures_of_series
from tasks.evaluation.report.style import (
    LIGHT,
    MARKERS,
    SHORT,
    STRONG,
    Theme,
    end_labels,
    render,
    style_axes,
)
from tasks.evaluation.results import Column, Result, Row, SamplerKey

GATE_BARS = (("kid", "made at it", "student"), ("reduced_kid", "reduced to it", "untrained"))


def write_all(result: Result, curve: pd.DataFrame | None, folder: Path) -> None:
    """Write figures/*.png and grids/*.png into `folder`."""
    (folder / "figures").mkdir()
    (folder / "grids").mkdir()
    for name, draw in figures_of(result, curve).items():
        (folder / "figures" / f"{name}.png").write_bytes(render(draw, LIGHT, "png"))
    for key in pictures.shown_keys(result):
        (folder / "grids" / f"{key.label}.png").write_bytes(pictures.samples_png(result, key))
    if result.data == "images":
        for nfe in result.nfe:
            strip = pictures.side_by_side_png(result, nfe)
            (folder / "grids" / f"side_by_side_nfe{nfe}.png").write_bytes(strip)


def figures_of(result: Result, curve: pd.DataFrame | None) -> dict[str, Callable[[Theme], Figure]]:
    """Drawing functions by name; each takes a theme."""
    found: dict[str, Callable[[Theme], Figure]] = {
        "frontier": lambda theme: frontier(result, theme),
    }
    if result.data == "series":
        found |= figures_of_series(result)
    if result.path_error:
        found["path_error"] = lambda theme: path_error(result, theme)
    if result.diagnostics.get("schedule"):
        found["scales"] = lambda theme: scales(result.diagnostics, theme)
    if curve is not None and "step" in curve and len(curve) > 1:
        found["training"] = lambda theme: training_curve(curve, theme)
    return found


def frontier(result: Result, theme: Theme) -> Figure:
    """Quality over the number of network calls: the criterion with its intervals, and the next
    figure that says better or worse.
    """
    shown = [result.column, *others(result)][:2]
    figure = Figure(figsize=(10.4, 4.6), layout="constrained", facecolor=theme.paper)
    for axes, column in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown, strict=True):
        _quality(axes, result, theme, column)
    return figure


def others(result: Result) -> list[Column]:
    """The columns beside the criterion that say better or worse and are measured of every row."""
    return [
        column
        for column in result.columns.values()
        if column.name != result.criterion
        and column.lower_is_better is not None
        and all(column.name in row.figures for row in result.rows)
    ]


def _quality(axes: Axes, result: Result, theme: Theme, column: Column) -> None:
    """One panel: a line per sampler, and the teacher and real images as levels."""
    rows = [row for row in result.rows if row.group in ("student", "untrained", "baseline")]
    value = {row.key: row[column.name].value for row in result.rows}
    logarithmic = bool(column.lower_is_better)
    positive = [v for v in value.values() if v > 0]
    floor = min(positive, default=1e-6) / 1.6 if logarithmic else -np.inf
    labels = []
    for name in dict.fromkeys(row.sampler for row in rows):
        line = sorted((row for row in rows if row.sampler == name), key=lambda row: row.nfe or 0)
        colour = _line(axes, result, theme, column, line, floor)
        end = max(value[line[-1].key], floor)
        labels.append((end, SHORT.get(name, baseline_title(name)), colour, name in STRONG))
    labels += _levels(axes, result, theme, value, logarithmic)
    if logarithmic:
        axes.set_yscale("log")
    better = "lower" if column.lower_is_better else "higher"
    style_axes(
        axes, theme, f"{column.heading} ({better} is better)", f"network calls per {result.one}"
    )
    steps = sorted({result.calls_of(row) or 0 for row in rows})
    margin = 0.06 * (steps[-1] - steps[0] + 1)
    axes.set_xlim(steps[0] - margin, steps[-1] + margin)
    axes.xaxis.set_major_locator(FixedLocator(steps))
    if logarithmic:
        axes.set_ylim(bottom=floor / 1.15)
    end_labels(axes, labels)


def _line(
    axes: Axes, result: Result, theme: Theme, column: Column, line: list[Row], floor: float
) -> str:
    """One sampler over its numbers of calls, with bars where there are intervals; its colour."""
    name = line[0].sampler
    colour, strong = theme.line(name), name in STRONG
    x = [result.calls_of(row) or 0 for row in line]
    y = [max(row[column.name].value, floor) for row in line]
    style: dict[str, Any] = {
        "color": colour,
        "linewidth": 2.4 if strong else 1.3,
        "zorder": 5 if strong else 3,
    }
    axes.plot(x, y, marker=MARKERS.get(name, "."), markersize=7 if strong else 5, **style)
    ends = [(row[column.name].low, row[column.name].high) for row in line]
    if any(low < high for low, high in ends):
        lows, highs = zip(*((max(low, floor), max(high, floor)) for low, high in ends), strict=True)
        axes.vlines(x, lows, highs, color=colour, linewidth=1.2, alpha=0.8)
    return colour


def _levels(
    axes: Axes, result: Result, theme: Theme, value: dict[SamplerKey, float], logarithmic: bool
) -> list[tuple[float, str, str, bool]]:
    """The teacher's full run and real images as horizontal lines; returns their labels."""
    labels = []
    for row in result.rows:
        if row.group not in ("teacher", "real") or (logarithmic and value[row.key] <= 0):
            continue
        style = "--" if row.group == "teacher" else ":"
        axes.axhline(value[row.key], color=theme.reference, linestyle=style, linewidth=1)
        short = f"Teacher, {row.nfe} calls" if row.group == "teacher" else f"Real {result.data}"
        labels.append((value[row.key], short, theme.reference, False))
    return labels


def path_error(result: Result, theme: Theme) -> Figure:
    """RMSE to the teacher on the same Brownian path, after each coarse step, a panel per number of
    steps.
    """
    figure = Figure(figsize=(10.4, 3.6), layout="constrained", facecolor=theme.paper)
    panels = np.atleast_1d(figure.subplots(1, max(1, len(result.nfe)), sharey=True))
    scale = "pixels in [-1, 1]" if result.data == "images" else "in standard units"
    for axes, nfe in zip(panels, sorted(result.nfe), strict=True):
        labels = []
        for name in ("untrained", "student"):
            if (key := SamplerKey(name, nfe)) not in result.path_error:
                continue
            errors = result.path_error[key]
            x, y = np.arange(1, nfe + 1), np.array([e.value for e in errors])
            axes.plot(x, y, marker=MARKERS[name], markersize=5, linewidth=2, color=theme.line(name))
            bounds = np.array([[e.low, e.high] for e in errors]).T
            axes.fill_between(x, *bounds, color=theme.line(name), alpha=0.18, linewidth=0)
            labels.append((y[-1], SHORT[name], theme.line(name), name == "student"))
        style_axes(
            axes,
            theme,
            f"RMSE to the teacher, {scale}" if axes is panels[0] else "",
            "coarse step",
        )
        axes.set_title(f"{nfe} steps", color=theme.text, fontsize=10, loc="left")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(
            FixedLocator(list(range(1, nfe + 1)) if nfe <= 20 else [1, nfe])
        )
        end_labels(axes, labels)
    return figure


def scales(diagnostics: dict[str, Any], theme: Theme) -> Figure:
    """Left: power of the data by frequency, and of the noise at each step with the size the step
    runs at. Right: KID of the teacher's own samples at each size beside its full-size images
    reduced.
    """
    gate = diagnostics.get("gate") or []
    figure = Figure(figsize=(10.4, 3.6), layout="constrained", facecolor=theme.paper)
    panels = figure.subplots(1, 2 if gate else 1, squeeze=False)[0]
    left, power = panels[0], np.array(diagnostics["power"])
    left.plot(np.arange(1, len(power)), power[1:], color=theme.line("student"), linewidth=2.2)
    left.set_yscale("log")
    style_axes(left, theme, "power per frequency", "frequency, cycles per image")
    labels = [(float(power[-1]), "data", theme.line("student"), True)]
    for sigma, size in diagnostics["schedule"]:
        if sigma < 1:
            noise = (sigma / (1 - sigma)) ** 2
            left.plot([1, size / 2], [noise, noise], color=theme.line("untrained"), linewidth=1.6)
            left.plot(
                [size / 2, len(power) - 1],
                [noise, noise],
                color=theme.line("untrained"),
                linestyle=":",
            )
            labels.append(
                (noise, f"noise at {sigma:g}: size {size}", theme.line("untrained"), False)
            )
    left.set_xlim(1, len(power) - 1)
    end_labels(left, labels)
    if gate:
        right, x = panels[1], np.arange(len(gate))
        for offset, (key, _, name) in zip((-0.2, 0.2), GATE_BARS, strict=True):
            right.bar(x + offset, [row[key] for row in gate], width=0.36, color=theme.line(name))
        style_axes(right, theme, "KID of the teacher at the size", "")
        off = {True: "", False: "\nDMD off"}
        right.set_xticks(x, [f"{row['size']}{off[row['dmd']]}" for row in gate])
        ends = [(gate[-1][key], label, theme.line(name), False) for key, label, name in GATE_BARS]
        end_labels(right, ends)
    return figure


def training_curve(curve: pd.DataFrame, theme: Theme) -> Figure:
    """Loss and validation figures over the training steps, one panel per kind of figure."""
    numbers = curve.select_dtypes("number")
    wanted = {
        "training loss": [c for c in numbers if c.split("/")[-1] == "loss"],
        "validation score": [c for c in numbers if _is_score(c)],
        "validation path error": [c for c in numbers if "rmse" in c],
    }
    kinds = {
        label: columns
        for label, columns in wanted.items()
        if columns and numbers[columns].notna().any().any()
    }
    figure = Figure(figsize=(10.4, 3.2), layout="constrained", facecolor=theme.paper)
    palette = [theme.line(n) for n in ("student", "untrained", "ddim", "dpmpp_2m", "unipc")]
    for axes, (label, columns) in zip(
        np.atleast_1d(figure.subplots(1, max(1, len(kinds)))), kinds.items(), strict=False
    ):
        labels = []
        for colour, column in zip(palette * len(columns), columns, strict=False):
            points = numbers[["step", column]].dropna()
            if points.empty:
                continue
            axes.plot(
                points["step"],
                points[column],
                color=colour,
                linewidth=1.8,
                marker="o" if len(points) < 40 else None,
                markersize=3,
            )
            labels.append((float(points[column].iloc[-1]), _tail(column), colour, False))
        style_axes(axes, theme, label, "training step")
        if len(columns) > 1:
            end_labels(axes, labels)
    return figure


def _is_score(column: str) -> bool:
    """Whether a column of history.csv is the criterion at a number of steps."""
    return bool(re.fullmatch(r"[^/]+_(nfe)?\d+", column)) and "rmse" not in column


def _tail(column: str) -> str:
    """The column's short name: its number of steps, if it has one."""
    steps = re.search(r"_(?:nfe_?)?(\d+)$", column)
    return f"{steps[1]} steps" if steps else column.replace("_", " ")
