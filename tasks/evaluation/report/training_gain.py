"""What distillation changes: pictures of the untrained generator and of the student at the fewest
steps. A method's own tuning before training, such as calibration, is the student's.
"""

from __future__ import annotations

from typing import Any

from tasks.evaluation.report.pictures import few_samples_png
from tasks.evaluation.report.text import png, shown, span
from tasks.evaluation.results import Result, SamplerKey

FEW = 4  # at most so many calls


def few_steps(result: Result) -> list[int]:
    """Numbers of steps with a picture, ascending: those up to FEW, or else the smallest."""
    there = [n for n in sorted(result.nfe) if SamplerKey("untrained", n) in result.images]
    return [n for n in there if n <= FEW] or there[:1]


def training_gain(result: Result) -> list[dict[str, Any]]:
    """For each of the fewest numbers of steps: the two grids, and the paired difference as text."""
    found = []
    for nfe in few_steps(result):
        pictures = []
        for name in ("untrained", "student"):
            key = SamplerKey(name, nfe)
            score = shown(result, result.row(name, nfe))
            pictures.append(
                {
                    "title": "Before distillation" if name == "untrained" else "The student",
                    "note": f"{nfe} calls, {result.column.title} {score}",
                    "image": png(few_samples_png(result, key)),
                }
            )
        found.append({"nfe": nfe, "grids": pictures, "text": _sentence(result, nfe)})
    return found


def _sentence(result: Result, nfe: int) -> str:
    gap = result.difference(nfe, result.row("untrained", nfe))
    if gap is None:
        return ""
    words = {
        "better": "The student is better than before distillation",
        "worse": "The student is worse than before distillation",
        "even": "There is no significant difference to before distillation",
    }[result.kind(gap)]
    return f"{words} ({result.column.title} difference {span(result, gap)})."
