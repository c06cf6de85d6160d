"""A student's KID by number of steps, and whether one is better than another by recorded
figures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """KID at one number of steps, with its 95 % bootstrap interval when there is one."""

    kid: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Decision:
    """Whether a version is champion now, and why, in one line."""

    champion: bool
    reason: str


def student_scores(metrics: Mapping[str, Any]) -> dict[int, Score]:
    """The student's scores by number of steps, from metrics.json: {"student": {"nfe10": {"kid":
    ...}}}.
    """
    rows = {
        key: row for key, row in metrics.get("student", {}).items() if re.fullmatch(r"nfe\d+", key)
    }
    return {
        int(key[3:]): Score(row["kid"], row.get("kid_low"), row.get("kid_high"))
        for key, row in rows.items()
    }


def to_tag(scores: Mapping[int, Score]) -> str:
    """Scores as text, for a version's tag."""
    return json.dumps({nfe: vars(score) for nfe, score in scores.items()})


def from_tag(text: str | None) -> dict[int, Score]:
    """The scores of :func:`to_tag`; none without a text."""
    return {int(nfe): Score(**fields) for nfe, fields in json.loads(text or "{}").items()}


def compare(new: Mapping[int, Score], old: Mapping[int, Score]) -> Decision:
    """Is `new` better than `old`? Both map numbers of steps to scores on the same evaluation set.

    The lower KID at the smallest common number of steps wins. If the intervals overlap there, the
    difference may be chance, so the mean KID over all common numbers has to be lower too.
    """
    common = sorted(new.keys() & old.keys())
    if not common:
        return Decision(False, "no number of steps in common with the champion")
    nfe = common[0]
    a, b = new[nfe], old[nfe]
    figures = f"KID {a.kid:.5f} against {b.kid:.5f} at {nfe} steps"
    if not a.kid < b.kid:
        return Decision(False, f"not better: {figures}")
    if a.high is None or b.low is None or a.high < b.low:
        return Decision(True, f"better: {figures}")
    if sum(new[n].kid for n in common) < sum(old[n].kid for n in common):
        return Decision(
            True, f"better: {figures} (intervals overlap), and in the mean over {common} steps"
        )
    return Decision(
        False,
        f"not clearly better: {figures}, intervals overlap, and worse in the mean over {common} "
        "steps",
    )
