"""Pictures of an evaluation: the frontier, path errors, the training curve and sample grids.

Colours follow Okabe and Ito, so that people with any colour vision can tell them apart; lines also
have their own markers and are labelled where they end.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from scipy.optimize import isotonic_regression

from models.sampling.baselines import title as baseline_title
from tasks.evaluation.report import image_grids as grids
from tasks.evaluation.results import Column, Result, Row, SamplerKey

COLOURS = {
    "student": "#D55E00",
    "untrained": "#0072B2",
    "ddim": "#009E73",
    "ddpm": "#8A8A8A",
    "dpmpp_2m": "#CC79A7",
    "sde_dpmpp_2m": "#B58900",
    "unipc": "#7A5195",
}
MARKERS = {
    "student": "o",
    "untrained": "s",
    "ddim": "v",
    "ddpm": "x",
    "dpmpp_2m": "D",
    "sde_dpmpp_2m": "P",
    "unipc": "^",
}
SHORT = {
    "student": "Student",
    "untrained": "Untrained",
    "sde_dpmpp_2m": "SDE-DPM++(2M)",
    "dpmpp_2m": "DPM++(2M)",
}


STRONG = ("student", "untrained")
PALETTE = ("#009E73", "#CC79A7", "#B58900", "#7A5195", "#56B4E9", "#8C564B", "#E69F00", "#44AA99")


@dataclass(frozen=True)
class Theme:
    """Colours of one mode: text, grid lines and paper; `lighter` replaces line colours that are too
    dark.
    """

    text: str
    grid: str
    paper: str
    reference: str
    lighter: dict[str, str] = field(default_factory=dict)

    def line(self, name: str) -> str:
        other = PALETTE[sum(name.encode()) % len(PALETTE)]  # samplers that came later
        return self.lighter.get(name, COLOURS.get(name, other))


GATE_BARS = (("kid", "made at it", "student"), ("reduced_kid", "reduced to it", "untrained"))
LIGHT = Theme("#1f2328", "#e4e6ea", "#ffffff", "#57606a")
DARK = Theme(
    "#e6e8eb",
    "#30363d",
    "#161b22",
    "#9aa4af",
    {"untrained": "#56B4E9", "unipc": "#B99AD9", "student": "#FF8A3D"},
)


def write_all(result: Result, curve: pd.DataFrame | None, folder: Path) -> None:
    """Write figures/*.png and grids/*.png into `folder`."""
    (folder / "figures").mkdir()
    (folder / "grids").mkdir()
    for name, draw in figures_of(result, curve).items():
        (folder / "figures" / f"{name}.png").write_bytes(render(draw, LIGHT, "png"))
    for key in grids.grid_keys(result):
        picture = grids.grid_png(result.images[key])
        (folder / "grids" / f"{key.label}.png").write_bytes(picture)
    for nfe in result.nfe:
        strip = grids.strip_png(
            [result.images[key][:16] for key in grids.side_by_side(result, nfe)]
        )
        (folder / "grids" / f"side_by_side_nfe{nfe}.png").write_bytes(strip)


def figures_of(result: Result, curve: pd.DataFrame | None) -> dict[str, Callable[[Theme], Figure]]:
    """Drawing functions by name; each takes a theme."""
    found: dict[str, Callable[[Theme], Figure]] = {
        "frontier": lambda theme: frontier(result, theme),
    }
    if result.path_error:
        found["path_error"] = lambda theme: path_error(result, theme)
    if result.diagnostics.get("schedule"):
        found["scales"] = lambda theme: scales(result.diagnostics, theme)
    if curve is not None and "step" in curve and len(curve) > 1:
        found["training"] = lambda theme: training_curve(curve, theme)
    return found


def render(draw: Callable[[Theme], Figure], theme: Theme, kind: str) -> bytes:
    """The figure as `png` or `svg`; text becomes outlines, so that it looks the same everywhere."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(
        {"svg.fonttype": "path", "svg.hashsalt": "fewstep", "font.size": 10}
    ):
        draw(theme).savefig(
            buffer, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None
        )
    return buffer.getvalue()


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
    _style(axes, theme, f"{column.heading} ({better} is better)", "network calls per image")
    steps = sorted({result.calls_of(row) or 0 for row in rows})
    margin = 0.06 * (steps[-1] - steps[0] + 1)
    axes.set_xlim(steps[0] - margin, steps[-1] + margin)
    axes.xaxis.set_major_locator(FixedLocator(steps))
    if logarithmic:
        axes.set_ylim(bottom=floor / 1.15)
    _end_labels(axes, labels)


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
        short = f"Teacher, {row.nfe} calls" if row.group == "teacher" else "Real images"
        labels.append((value[row.key], short, theme.reference, False))
    return labels


def path_error(result: Result, theme: Theme) -> Figure:
    """RMSE to the teacher on the same Brownian path, after each coarse step, a panel per number of
    steps.
    """
    figure = Figure(figsize=(10.4, 3.6), layout="constrained", facecolor=theme.paper)
    panels = np.atleast_1d(figure.subplots(1, max(1, len(result.nfe)), sharey=True))
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
        _style(
            axes,
            theme,
            "RMSE to the teacher, pixels in [-1, 1]" if axes is panels[0] else "",
            "coarse step",
        )
        axes.set_title(f"{nfe} steps", color=theme.text, fontsize=10, loc="left")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(
            FixedLocator(list(range(1, nfe + 1)) if nfe <= 20 else [1, nfe])
        )
        _end_labels(axes, labels)
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
    _style(left, theme, "power per frequency", "frequency, cycles per image")
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
    _end_labels(left, labels)
    if gate:
        right, x = panels[1], np.arange(len(gate))
        for offset, (key, _, name) in zip((-0.2, 0.2), GATE_BARS, strict=True):
            right.bar(x + offset, [row[key] for row in gate], width=0.36, color=theme.line(name))
        _style(right, theme, "KID of the teacher at the size", "")
        off = {True: "", False: "\nDMD off"}
        right.set_xticks(x, [f"{row['size']}{off[row['dmd']]}" for row in gate])
        ends = [(gate[-1][key], label, theme.line(name), False) for key, label, name in GATE_BARS]
        _end_labels(right, ends)
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
        _style(axes, theme, label, "training step")
        if len(columns) > 1:
            _end_labels(axes, labels)
    return figure


def _is_score(column: str) -> bool:
    """Whether a column of history.csv is the criterion at a number of steps."""
    return bool(re.fullmatch(r"[^/]+_(nfe)?\d+", column)) and "rmse" not in column


def _tail(column: str) -> str:
    """The column's short name: its number of steps, if it has one."""
    steps = re.search(r"_(?:nfe_?)?(\d+)$", column)
    return f"{steps[1]} steps" if steps else column.replace("_", " ")


def _style(axes: Axes, theme: Theme, y_label: str, x_label: str) -> None:
    axes.set_facecolor(theme.paper)
    axes.set_ylabel(y_label, color=theme.text)
    axes.set_xlabel(x_label, color=theme.text)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.text, which="both", length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.grid)
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def _end_labels(axes: Axes, labels: Sequence[tuple[float, str, str, bool]]) -> None:
    """Write each label beside the right end of its line, moved apart where they would overlap."""
    height = _height(axes) * 0.78 * 72
    axes.set_ylim(axes.get_ylim())
    to_axes = axes.transScale + axes.transLimits
    wanted = [float(to_axes.transform((0, y))[1]) for y, *_ in labels]
    places = spread(wanted, gap=13 / height, low=0.01, high=0.99)
    for place, at, (_, text, colour, strong) in zip(places, wanted, labels, strict=True):
        axes.plot(
            [1.0, 1.035],
            [at, place],
            transform=axes.transAxes,
            clip_on=False,
            color=colour,
            linewidth=0.7,
        )
        axes.annotate(
            text, (1.045, place), xycoords="axes fraction", va="center", color=colour, fontsize=9.5,
            fontweight="bold" if strong else "normal", annotation_clip=False,
        )  # fmt: skip


def _height(axes: Axes) -> float:
    figure = axes.get_figure(root=True)
    return 4.0 if figure is None else float(figure.get_size_inches()[1])


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions nearest to `wanted` (least squares), in the same order, `gap` apart, within [low,
    high].
    """
    order = np.argsort(wanted, kind="stable")
    gap = min(gap, (high - low) / max(1, len(order) - 1))
    steps = gap * np.arange(len(order))
    places = np.empty(len(order))
    if len(order):
        free = isotonic_regression(np.asarray(wanted, float)[order] - steps).x
        places[order] = np.clip(free, low, high - steps[-1]) + steps
    return [float(place) for place in places]
