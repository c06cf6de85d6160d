"""The HTML report: one self-contained page that opens anywhere, prints, and follows light and dark
mode.
"""

from __future__ import annotations

import base64
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from models.evaluation.metrics import Interval
from tasks.config.schema import Params, params_dict
from tasks.evaluation.report import figures
from tasks.evaluation.report import image_grids as grids
from tasks.evaluation.results import Result, Row

TEMPLATES = Path(__file__).parent / "templates"
PACKAGES = ("torch", "diffusers", "numpy", "scipy")
CAPTIONS = {
    "frontier": (
        "Quality over network calls",
        "Distance to held-out images, log scale. Bars are 95 % bootstrap intervals; the dashed "
        "and dotted "
        "line are the teacher's full run and other real images.",
    ),
    "path_error": (
        "Error along the path",
        "The generator runs on the teacher's own start noise and Brownian path, so its states can "
        "be "
        "compared with the teacher's one by one. Bands are 95 % intervals over paths.",
    ),
    "scales": (
        "Resolution of the steps",
        "A step at low resolution loses nothing where the data's power is below the noise. The "
        "bars show how well "
        "the teacher itself works at each size; where it fails, its judgement is not used.",
    ),
    "training": ("Training", "Loss and validation figures of the student that is evaluated here."),
}


def render(
    result: Result, curve: pd.DataFrame | None, params: Params, lineage: dict[str, str]
) -> str:
    """The whole page as HTML; all text is escaped and all pictures are inside."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.j2").render(
        verdicts=[verdict(result, nfe) for nfe in result.nfe],
        cross=cross_verdict(result),
        result=result,
        reference=params.evaluation.reference.path
        if params.evaluation.reference
        else "the held-out split",
        table=[table_row(result, row) for row in ordered(result)],
        pictures=[
            {
                "title": CAPTIONS[name][0],
                "caption": CAPTIONS[name][1],
                "light": _uri(draw, figures.LIGHT),
                "dark": _uri(draw, figures.DARK),
            }
            for name, draw in figures.figures_of(result, curve).items()
        ],
        sides=[side(result, nfe) for nfe in result.nfe],
        paths=path_strip(result),
        lineage=[*lineage.items(), *versions()],
        params=yaml.safe_dump(params_dict(params), sort_keys=False),
    )


def verdict(result: Result, nfe: int) -> dict[str, str]:
    """A sentence on the student at `nfe` steps against the best training-free sampler, and its
    kind.

    `kind` is better or worse when the paired 95 % interval excludes 0, and even otherwise.
    """
    student = result.row(f"student.nfe{nfe}")
    rivals = result.baselines(nfe)
    if not rivals:
        return {
            "kind": "even",
            "nfe": str(nfe),
            "text": f"KID {fixed(student.kid.value)}, no rival.",
        }
    best, gap = rivals[0], result.differences[f"best_at_{nfe}.nfe{nfe}"]
    kind = _kind(gap)
    words = {
        "better": "beats every training-free sampler",
        "worse": "does not reach the best training-free sampler",
        "even": "is not significantly different from the best training-free sampler",
    }[kind]
    text = (
        f"The student {words}. KID {fixed(student.kid.value)} against {fixed(best.kid.value)} for "
        f"{best.title} (difference {_span(gap)}). {to_teacher(result, nfe)}"
    )
    calls = result.calls_of(student)
    if calls != nfe:
        text += f" It makes {calls} network calls, not {nfe}."
    text += equal_compute(result, student)
    return {"kind": kind, "nfe": str(nfe), "text": text}


def equal_compute(result: Result, student: Row) -> str:
    """A sentence on the training-free samplers that cost as much as a cheaper student; "" where
    there are none.
    """
    equal = {row.nfe for row in result.rows if row.group == "baseline"} - set(result.nfe)
    full = [
        result.flops[row.key]
        for row in result.baselines(student.nfe or 0)
        if row.key in result.flops
    ]
    if not equal or not full or student.key not in result.flops:
        return ""
    nfe = max(steps for steps in equal if steps is not None)
    best, gap = result.baselines(nfe)[0], result.differences[f"best_at_{nfe}.nfe{student.nfe}"]
    share, calls = result.flops[student.key] / min(full), f"{nfe} call{'s' if nfe > 1 else ''}"
    return (
        f" Its steps cost {share:.0%} of as many training-free ones; for as much compute, "
        f"{calls}, {best.title} has "
        f"KID {fixed(best.kid.value)} (difference {_span(gap)})."
    )


def to_teacher(result: Result, nfe: int) -> str:
    """The student's distance to the teacher's full run in one sentence."""
    gap, teacher = result.differences[f"teacher.nfe{nfe}"], result.teacher
    if _kind(gap) == "even":
        value = fixed(teacher.kid.value)
        full = f"the teacher's {teacher.nfe} calls"
        return f"It is not significantly different from {full} (KID {value})."
    where = f"{fixed(abs(gap.value))} {'above' if gap.value > 0 else 'below'}"
    return f"That is {where} the teacher's {teacher.nfe} calls (KID {fixed(teacher.kid.value)})."


def cross_verdict(result: Result) -> str | None:
    """The student at its fewest steps against training-free samplers at its most; None if they are
    one.
    """
    most, fewest = max(result.nfe), min(result.nfe)
    gap = result.differences.get(f"best_at_{most}.nfe{fewest}")
    if most == fewest or gap is None:
        return None
    words = {"better": "is better than", "worse": "is not as good as", "even": "is level with"}[
        _kind(gap)
    ]
    rival = f"the best training-free sampler at {most}"
    return f"At {fewest} steps the student {words} {rival} (KID difference {_span(gap)})."


def ordered(result: Result) -> list[Row]:
    """Real images and teacher, then by number of calls, the best KID first."""
    return sorted(
        result.rows,
        key=lambda row: (row.group not in ("real", "teacher"), -(row.nfe or 10**9), row.kid.value),
    )


def table_row(result: Result, row: Row) -> dict[str, Any]:
    """One line of the table as text."""
    spacing = result.spacing.get(row.key, "trailing")
    return {
        "title": row.title
        + (
            ""
            if spacing == "trailing"
            else f" ({ {'logsnr': 'log-SNR', 'karras': 'Karras'}[spacing] } steps)"
        ),
        "group": row.group,
        "section": -(10**9) if row.group in ("real", "teacher") else -(row.nfe or 0),
        "nfe": "–" if row.nfe is None else str(result.calls_of(row)),
        "kid": fixed(row.kid.value),
        "interval": f"{fixed(row.kid.low)} to {fixed(row.kid.high)}",
        "frechet": fixed(row.frechet, 2),
        "precision": f"{row.precision:.3f}",
        "recall": f"{row.recall:.3f}",
        "ms": "–" if row.ms_per_image is None else f"{row.ms_per_image:.1f}",
        "std": f"{row.std:.3f}",
        "gflops": f"{result.flops[row.key] / 1e9:.3g}" if row.key in result.flops else "–",
    }


def side(result: Result, nfe: int) -> dict[str, Any]:
    """The grids shown together for one number of steps."""
    shown = []
    for key in grids.side_by_side(result, nfe):
        row = result.row(key)
        calls = result.calls_of(row)
        best = ", best training-free" if row.group == "baseline" else ""
        shown.append(
            {
                "title": row.title + best,
                "note": f"{calls} calls, KID {fixed(row.kid.value)}",
                "image": png(grids.grid_png(result.images[key])),
            }
        )
    return {"nfe": nfe, "grids": shown}


def path_strip(result: Result) -> list[dict[str, str]]:
    """Rows of pictures made along the same Brownian paths: teacher first, then fewer and fewer
    steps.
    """
    titles = {
        "teacher": result.teacher.title,
        **{f"{r.sampler}.nfe{r.nfe}": f"{r.title}, {r.nfe} steps" for r in result.rows},
    }
    return [
        {"title": titles[key], "image": png(grids.strip_png([images[:16]]))}
        for key, images in result.path_images.items()
    ]


def versions() -> list[tuple[str, str]]:
    """What computed the figures."""
    return [
        ("python", platform.python_version()),
        *((p, version(p)) for p in PACKAGES),
    ]


def fixed(value: float, decimals: int = 4) -> str:
    """A number with a true minus sign, and none before zero."""
    text = f"{value:.{decimals}f}"
    return text.replace("-", "" if float(text) == 0 else "−")


def png(content: bytes) -> str:
    """A picture as a data URI."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _uri(draw: Any, theme: figures.Theme) -> str:
    return (
        "data:image/svg+xml;base64," + base64.b64encode(figures.render(draw, theme, "svg")).decode()
    )


def _span(gap: Interval) -> str:
    return f"{fixed(gap.value)}, 95 % {fixed(gap.low)} to {fixed(gap.high)}"


def _kind(gap: Interval) -> str:
    if gap.high < 0:
        return "better"
    return "worse" if gap.low > 0 else "even"
