"""Pictures of series: fans of paths, marginal laws, autocorrelation, distance to an exact law."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from models.evaluation.series.correlations import correlations, lags_of
from models.evaluation.series.gaussian_laws import ks_limit
from tasks.evaluation.report.style import LIGHT, Theme, style_axes
from tasks.evaluation.results import Result, SamplerKey

Series = NDArray[np.floating[Any]]
CHANNELS = 3  # the first ones are drawn
PATHS, STRIP = 6, 8
TIMES = 4
BANDS = ((0.05, 0.95, 0.16), (0.25, 0.75, 0.30))  # quantiles and how dark


def figures_of_series(result: Result) -> dict[str, Callable[[Theme], Figure]]:
    """Drawing functions by name; each takes a theme."""
    found: dict[str, Callable[[Theme], Figure]] = {
        "marginals": lambda theme: marginals(result, theme),
        "autocorrelation": lambda theme: autocorrelation(result, theme),
    }
    if result.law:
        found["law"] = lambda theme: law(result, theme)
    return found


def real_series(result: Result) -> Series:
    """The series that everything was measured against, (n, C, L)."""
    assert result.real_data is not None
    return result.real_data


def compared(result: Result, nfe: int) -> list[tuple[SamplerKey, str]]:
    """Teacher, best training-free sampler, untrained and student at `nfe`, with their titles."""
    keys = [result.teacher.key, *(row.key for row in result.baselines(nfe)[:1])]
    keys += [SamplerKey("untrained", nfe), SamplerKey("student", nfe)]
    there = {row.key: row.title for row in result.rows}
    return [(key, there[key]) for key in keys if key in result.images]


def fan_png(result: Result, key: SamplerKey) -> bytes:
    """Quantiles 5 to 95 % and 25 to 75 % over time, the median and six paths; dashed lines are
    the real series' outer quantiles and median.
    """
    made, real = result.images[key], real_series(result)
    channels = min(made.shape[1], CHANNELS)
    figure = Figure(figsize=(3.4, 0.4 + 2.1 * channels), layout="constrained", facecolor="white")
    colour = LIGHT.reference if key.name in ("teacher", "real") else LIGHT.line(key.name)
    for channel, axes in enumerate(figure.subplots(channels, 1, squeeze=False)[:, 0]):
        _fan(axes, made[:, channel], real[:, channel], colour)
        style_axes(axes, LIGHT, _name(result, channel), "time" if channel == channels - 1 else "")
    return _png(figure)


def _fan(axes: Axes, made: Series, real: Series, colour: str) -> None:
    time = np.arange(made.shape[1])
    for low, high, alpha in BANDS:
        axes.fill_between(
            time, *np.quantile(made, (low, high), axis=0), color=colour, alpha=alpha, linewidth=0
        )
    axes.plot(time, made[:PATHS].T, color=colour, linewidth=0.6, alpha=0.8)
    axes.plot(time, np.median(made, axis=0), color=colour, linewidth=1.8)
    outer = np.quantile(real, (0.05, 0.5, 0.95), axis=0)
    axes.plot(time, outer.T, color=LIGHT.text, linestyle="--", linewidth=0.8)
    axes.set_ylim(*_limits(real))


def _limits(real: Series) -> tuple[float, float]:
    """The range of the real series, so that all pictures have one scale."""
    low, high = np.quantile(real, (0.001, 0.999))
    margin = 0.15 * (high - low)
    return float(low - margin), float(high + margin)


def strip_png(result: Result, key: SamplerKey) -> bytes:
    """The first paths along the teacher's Brownian paths, over the teacher's own (dashed)."""
    teacher, made = result.path_images[SamplerKey("teacher")], result.path_images[key]
    count = min(STRIP, len(made), len(teacher))
    figure = Figure(figsize=(10.4, 1.3), layout="constrained", facecolor="white")
    colour = LIGHT.reference if key.name == "teacher" else LIGHT.line(key.name)
    for place, axes in enumerate(figure.subplots(1, count, sharey=True, squeeze=False)[0]):
        axes.plot(made[place, 0], color=colour, linewidth=1.6)
        axes.plot(teacher[place, 0], color=LIGHT.text, linestyle="--", linewidth=0.8)
        axes.set_axis_off()
    return _png(figure)


def marginals(result: Result, theme: Theme) -> Figure:
    """Densities at several times: data, teacher, and samplers at the fewest steps."""
    real, nfe = real_series(result), min(result.nfe)
    channels = min(real.shape[1], CHANNELS)
    times = np.unique(np.linspace(0, real.shape[2] - 1, TIMES).round().astype(int))
    figure = Figure(figsize=(10.4, 0.8 + 2.3 * channels), layout="constrained")
    figure.set_facecolor(theme.paper)
    panels = figure.subplots(channels, len(times), squeeze=False)
    for (channel, column), axes in np.ndenumerate(panels):
        bins = np.linspace(*_limits(real[:, channel, times[column]]), 36)
        everyone = [(None, "Data", real), *_made(result, nfe)]
        for key, title, values in everyone:
            _density(axes, values[:, channel, times[column]], bins, key, title, theme)
        label = f"{_name(result, channel)}, density" if column == 0 else ""
        style_axes(axes, theme, label, f"value at time {times[column]}")
    _legend(figure, theme)
    return figure


def _density(
    axes: Axes, values: Series, bins: Series, key: SamplerKey | None, title: str, theme: Theme
) -> None:
    if key is None:
        axes.hist(
            values, bins.tolist(), density=True, color=theme.reference, alpha=0.35, label=title
        )
        return
    style = _style_of(key, theme)
    height, edges = np.histogram(values, bins, density=True)
    axes.stairs(np.nan_to_num(height), edges, label=title, **style)


def autocorrelation(result: Result, theme: Theme) -> Figure:
    """Autocorrelation by lag, a panel per number of steps and channel."""
    real = real_series(result)
    channels, lags = min(real.shape[1], CHANNELS), lags_of(real.shape[2])
    steps = sorted(result.nfe)
    figure = Figure(figsize=(10.4, 0.8 + 2.3 * channels), layout="constrained")
    figure.set_facecolor(theme.paper)
    panels = figure.subplots(channels, len(steps), squeeze=False, sharey="row")
    own = _acf(real, lags)
    for column, nfe in enumerate(steps):
        found = [(key, title, _acf(values, lags)) for key, title, values in _made(result, nfe)]
        for channel in range(channels):
            axes = panels[channel, column]
            axes.plot(own[channel], color=theme.text, linewidth=3.2, alpha=0.35, label="Data")
            for key, title, curve in found:
                axes.plot(curve[channel], label=title, **_style_of(key, theme))
            label = f"{_name(result, channel)}, autocorrelation" if column == 0 else ""
            style_axes(axes, theme, label, "lag")
            axes.set_title(f"{nfe} steps", color=theme.text, fontsize=10, loc="left")
    _legend(figure, theme)
    return figure


def _acf(values: Series, lags: int) -> Series:
    """(C, lags + 1)"""
    whole = correlations(values.astype(np.float64), lags)[0]
    return np.asarray(whole[np.arange(len(whole)), np.arange(len(whole))])


def law(result: Result, theme: Theme) -> Figure:
    """Distance to the exact law over time, at the fewest steps: marginals and means."""
    nfe = min(result.nfe)
    figure = Figure(figsize=(10.4, 3.8), layout="constrained", facecolor=theme.paper)
    panels = figure.subplots(1, 2, squeeze=False)[0]
    for key, title in compared(result, nfe):
        errors, style = result.law[key], _style_of(key, theme)
        for axes, values in zip(panels, (errors.ks, errors.mean), strict=True):
            axes.plot(values, label=title, **style)
    limit = ks_limit(result.samples)
    panels[0].axhline(limit, color=theme.reference, linestyle=":", label="95 % of the law itself")
    style_axes(panels[0], theme, "KS statistic of the marginal", "time")
    style_axes(panels[1], theme, "error of the mean, deviations", "time")
    for axes in panels:
        axes.set_ylim(bottom=0)
    _legend(figure, theme)
    return figure


def _made(result: Result, nfe: int) -> Iterable[tuple[SamplerKey, str, Series]]:
    return [(key, title, result.images[key]) for key, title in compared(result, nfe)]


def _style_of(key: SamplerKey, theme: Theme) -> dict[str, Any]:
    if key.name == "teacher":
        return {"color": theme.reference, "linestyle": "--", "linewidth": 1.4}
    return {"color": theme.line(key.name), "linewidth": 2.2 if key.name == "student" else 1.4}


def _legend(figure: Figure, theme: Theme) -> None:
    """One legend for all panels, which may show different rivals; each label once."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(
        list(found.values()),
        list(found),
        loc="outside upper left",
        ncols=6,
        frameon=False,
        labelcolor=theme.text,
        fontsize=9,
    )


def _name(result: Result, channel: int) -> str:
    return result.channels[channel] if channel < len(result.channels) else f"channel {channel}"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context({"font.size": 9}):
        figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()
