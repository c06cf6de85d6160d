"""Colours, axes and labels that all pictures of the report share.

Colours follow Okabe and Ito, so that people with any colour vision can tell them apart; lines also
have their own markers and are labelled where they end.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from scipy.optimize import isotonic_regression

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


LIGHT = Theme("#1f2328", "#e4e6ea", "#ffffff", "#57606a")
DARK = Theme(
    "#e6e8eb",
    "#30363d",
    "#161b22",
    "#9aa4af",
    {"untrained": "#56B4E9", "unipc": "#B99AD9", "student": "#FF8A3D"},
)


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


def style_axes(axes: Axes, theme: Theme, y_label: str, x_label: str) -> None:
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


def end_labels(axes: Axes, labels: Sequence[tuple[float, str, str, bool]]) -> None:
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
