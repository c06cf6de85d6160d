"""A student's criterion by number of steps, and whether one student is better than another by
recorded figures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """The criterion at one number of steps, with its 95 % bootstrap interval when there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Criterion:
    """The metric that decides."""

    name: str = "kid"
    lower_is_better: bool = True


@dataclass(frozen=True)
class Decision:
    """Whether a version is champion now, and why, in one line."""

    champion: bool
    reason: str


def criterion_of(metrics: Mapping[str, Any]) -> Criterion:
    """The metric by which the evaluation in metrics.json ranks."""
    about = metrics.get("evaluation", {})
    return Criterion(about.get("criterion", "kid"), about.get("lower_is_better", True))


def student_scores(metrics: Mapping[str, Any]) -> dict[int, Score]:
    """The student's scores by number of steps, from metrics.json: {"student": {"nfe10": {"kid":
    ...}}}.
    """
    name = criterion_of(metrics).name
    rows = {
        key: row for key, row in metrics.get("student", {}).items() if re.fullmatch(r"nfe\d+", key)
    }
    return {
        int(key[3:]): Score(row[name], row.get(f"{name}_low"), row.get(f"{name}_high"))
        for key, row in rows.items()
    }


def to_tag(scores: Mapping[int, Score]) -> str:
    """Scores as text, for a version's tag."""
    return json.dumps({nfe: vars(score) for nfe, score in scores.items()})


def from_tag(text: str | None) -> dict[int, Score]:
    """The scores of :func:`to_tag`; none without a text."""
    found = json.loads(text or "{}")
    # Versions of earlier releases have "kid" for "value".
    plain = {nfe: {"value": f.get("kid"), **f} for nfe, f in found.items()}
    return {int(nfe): Score(f["value"], f["low"], f["high"]) for nfe, f in plain.items()}


def criterion_to_tag(criterion: Criterion) -> str:
    return json.dumps(vars(criterion))


def criterion_from_tag(text: str | None) -> Criterion:
    """The criterion of :func:`criterion_to_tag`; KID without a text, as earlier releases had it."""
    return Criterion(**json.loads(text or "{}"))


def compare(
    new: Mapping[int, Score], old: Mapping[int, Score], criterion: Criterion = Criterion()
) -> Decision:
    """Is `new` better than `old`? Both map numbers of steps to scores on the same evaluation set.

    The better score at the smallest common number of steps wins. If the intervals overlap there,
    the difference may be chance, so the mean over all common numbers has to be better too.
    """
    common = sorted(new.keys() & old.keys())
    if not common:
        return Decision(False, "no number of steps in common with the champion")
    nfe, sign = common[0], 1 if criterion.lower_is_better else -1
    a, b = new[nfe], old[nfe]
    name = "KID" if criterion.name == "kid" else criterion.name
    figures = f"{name} {a.value:.5f} against {b.value:.5f} at {nfe} steps"
    if not sign * a.value < sign * b.value:
        return Decision(False, f"not better: {figures}")
    if _apart(a, b, criterion):
        return Decision(True, f"better: {figures}")
    if sign * sum(new[n].value for n in common) < sign * sum(old[n].value for n in common):
        return Decision(
            True, f"better: {figures} (intervals overlap), and in the mean over {common} steps"
        )
    return Decision(
        False,
        f"not clearly better: {figures}, intervals overlap, and worse in the mean over {common} "
        "steps",
    )


def _apart(better: Score, worse: Score, criterion: Criterion) -> bool:
    """Whether the intervals do not overlap; True where one of them is not known."""
    if criterion.lower_is_better:
        return better.high is None or worse.low is None or better.high < worse.low
    return better.low is None or worse.high is None or better.low > worse.high
