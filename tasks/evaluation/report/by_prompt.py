"""Images of several samplers beside each other, prompt by prompt: each row has one prompt and one
start noise.
"""

from __future__ import annotations

from typing import Any

from tasks.evaluation.report import image_grids as grids
from tasks.evaluation.report.text import png
from tasks.evaluation.results import Result, SamplerKey

PROMPTS = 12  # rows at most
LEAST = 96  # pixels of a small image's side


def by_prompt(result: Result) -> dict[str, Any] | None:
    """Headings and rows of the table; None for teachers without prompts."""
    if result.prompts is None:
        return None
    keys = shown_samplers(result)
    first = {prompt: index for index, prompt in reversed(list(enumerate(result.prompts)))}
    places = sorted(first.values())[:PROMPTS]
    return {
        "headings": [_heading(result, key) for key in keys],
        "rows": [
            {
                "prompt": result.prompts[place],
                "images": [_image(result, key, place) for key in keys],
            }
            for place in places
        ],
    }


def shown_samplers(result: Result) -> list[SamplerKey]:
    """The teacher; then, of every number of steps, the best training-free sampler, the untrained
    student, other students and the student.
    """
    others = [row.key for row in result.rows if row.group == "other"]
    keys = []
    for nfe in result.nfe:
        *before, student = grids.side_by_side(result, nfe)
        keys += [*before, *(key for key in others if key.nfe == nfe), student]
    return list(dict.fromkeys(keys))


def _heading(result: Result, key: SamplerKey) -> dict[str, str]:
    row = result.row(key.name, key.nfe)
    return {"title": row.title, "calls": f"{result.calls_of(row)} calls"}


def _image(result: Result, key: SamplerKey, place: int) -> str:
    return png(grids.strip_png([result.images[key][place : place + 1]], LEAST))
