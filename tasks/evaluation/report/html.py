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

from models.sampling.baselines import title as baseline_title
from tasks.config.schema import Params, params_dict
from tasks.evaluation.law_errors import law_rows
from tasks.evaluation.report import figures, pictures
from tasks.evaluation.report import image_grids as grids
from tasks.evaluation.report.by_prompt import by_prompt
from tasks.evaluation.report.elsewhere import load_back, stock_back
from tasks.evaluation.report.style import DARK, LIGHT, Theme
from tasks.evaluation.report.style import render as theme_render
from tasks.evaluation.report.text import fixed, number, png, shown, span
from tasks.evaluation.report.training_gain import training_gain
from tasks.evaluation.results import Column, Result, Row, SamplerKey

TEMPLATES = Path(__file__).parent / "templates"
PACKAGES = ("torch", "diffusers", "numpy", "scipy")
CAPTIONS = {
    "frontier": (
        "Quality over network calls",
        "Distance to {real} {data}, log scale. Bars are 95 % bootstrap intervals. The dashed "
        "line is the teacher's full run, the dotted line other real {data}, where there are any. A "
        "distance of 0 or less cannot be drawn on this scale.",
    ),
    "path_error": (
        "Error along the path",
        "The generator runs on the teacher's own start noise and Brownian path, so its states can "
        "be compared with the teacher's one by one. Bands are 95 % intervals over paths.",
    ),
    "scales": (
        "Resolution of the steps",
        "A step at low resolution loses nothing where the data's power is below the noise. The "
        "bars show how well the teacher itself works at each size; where it fails, its score is "
        "not used.",
    ),
    "marginals": (
        "Marginal laws",
        "Densities at several times, of samplers at the fewest steps. Grey: the real series.",
    ),
    "autocorrelation": (
        "Autocorrelation",
        "Over paths and times, by lag. The broad line is that of the real series.",
    ),
    "law": (
        "Distance to the exact law",
        "The data's law is known. Left: Kolmogorov-Smirnov statistic of each time; samples of the "
        "law itself stay below the dotted line in 95 % of cases. Right: error of the mean in "
        "standard deviations. Samplers at the fewest steps.",
    ),
    "training": ("Training", "Loss and validation figures of the student that is evaluated here."),
}
REAL = {"real": "the real", "teacher": "the teacher's own"}
REFERENCES = {
    "real": "the held-out split",
    "teacher": "its full runs of the same prompts from other start noise; there is no dataset",
}
SPACINGS = {"logsnr": "log-SNR", "karras": "Karras"}


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
    reference = params.evaluation.reference
    return environment.get_template("report.html.j2").render(
        verdicts=[verdict(result, nfe) for nfe in result.nfe],
        cross=cross_verdict(result),
        result=result,
        criterion=result.column,
        columns=table_columns(result),
        reference=reference.path if reference else REFERENCES[result.against],
        table=[table_row(result, row) for row in ordered(result)],
        left_out=left_out(result),
        pictures=[
            {
                "title": CAPTIONS[name][0],
                "caption": CAPTIONS[name][1].format(data=result.data, real=REAL[result.against]),
                "light": _uri(draw, LIGHT),
                "dark": _uri(draw, DARK),
            }
            for name, draw in figures.figures_of(result, curve).items()
        ],
        gains=training_gain(result),
        sides=[side(result, nfe) for nfe in result.nfe],
        prompts=by_prompt(result),
        paths=path_strip(result),
        law=law_rows(result),
        load_back=load_back(result),
        stock_back=stock_back(result),
        lineage=[*lineage.items(), *content(result), *versions()],
        params=yaml.safe_dump(params_dict(params), sort_keys=False),
    )


def verdict(result: Result, nfe: int) -> dict[str, str]:
    """A sentence on the student at `nfe` steps against the best training-free sampler, and its
    kind.

    `kind` is better or worse when the paired 95 % interval excludes 0, and even otherwise.
    """
    student, name = result.row("student", nfe), result.column.title
    rivals = result.baselines(nfe)
    gap = result.difference(nfe, rivals[0]) if rivals else None
    if gap is None:
        text = (
            f"{name} {shown(result, student)}. There is no training-free sampler to compare with."
        )
        return {"kind": "even", "nfe": str(nfe), "text": text}
    best, kind = rivals[0], result.kind(gap)
    words = {
        "better": "is better than every training-free sampler",
        "worse": "does not reach the best training-free sampler",
        "even": "is not significantly different from the best training-free sampler",
    }[kind]
    text = (
        f"The student {words}. {name} {shown(result, student)} against {shown(result, best)} for "
        f"{best.title} (difference {span(result, gap)}). {to_teacher(result, nfe)}"
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
    best = result.baselines(nfe)[0]
    gap = result.difference(student.nfe or 0, best)
    share, calls = result.flops[student.key] / min(full), f"{nfe} call{'s' if nfe > 1 else ''}"
    return (
        f" Its steps cost {share:.0%} of as many training-free ones; for as much compute, "
        f"{calls}, {best.title} has {result.column.title} {shown(result, best)}"
        + (f" (difference {span(result, gap)})." if gap else ".")
    )


def to_teacher(result: Result, nfe: int) -> str:
    """The student's distance to the teacher's full run in one sentence."""
    teacher = result.teacher
    gap, full = result.difference(nfe, teacher), f"the teacher's {teacher.nfe} calls"
    value = f"({result.column.title} {shown(result, teacher)})"
    if gap is None or result.kind(gap) == "even":
        return f"It is not significantly different from {full} {value}."
    where = f"{number(result, abs(gap.value))} {'above' if gap.value > 0 else 'below'}"
    return f"That is {where} {full} {value}."


def cross_verdict(result: Result) -> str | None:
    """The student at its fewest steps against training-free samplers at its most; None if they are
    one.
    """
    most, fewest = max(result.nfe), min(result.nfe)
    rivals = result.baselines(most)
    gap = result.difference(fewest, rivals[0]) if rivals else None
    if most == fewest or gap is None:
        return None
    words = {
        "better": "is better than",
        "worse": "is not as good as",
        "even": "is not significantly different from",
    }[result.kind(gap)]
    rival = f"the best training-free sampler at {most}"
    title = result.column.title
    return (
        f"At {fewest} steps the student {words} {rival} ({title} difference {span(result, gap)})."
    )


def ordered(result: Result) -> list[Row]:
    """Real images and teacher, then by number of calls, the best first."""
    return sorted(
        result.rows,
        key=lambda row: (
            row.group not in ("real", "teacher"),
            -(row.nfe or 10**9),
            result.cost(row),
        ),
    )


def table_columns(result: Result) -> list[dict[str, Any]]:
    """The headings of the figures: the criterion first; an interval has a column of its own."""
    several = len({c.features for c in result.columns.values()} - {None}) > 1
    found = []
    for column in sorted(result.columns.values(), key=lambda c: c.name != result.criterion):
        title = column.heading if several else column.title
        found.append({"name": column.name, "title": title, "interval": False})
        if column.shows_interval or column.name == result.criterion:
            found.append({"name": column.name, "title": "95 %", "interval": True})
    return found


def table_row(result: Result, row: Row) -> dict[str, Any]:
    """One line of the table as text."""
    spacing = SPACINGS.get(result.spacing.get(row.key, ""))
    return {
        "title": row.title + (f" ({spacing})" if spacing else ""),
        "group": row.group,
        "section": -(10**9) if row.group in ("real", "teacher") else -(row.nfe or 0),
        "nfe": "–" if row.nfe is None else str(result.calls_of(row)),
        "figures": [_cell(result, row, each) for each in table_columns(result)],
        "ms": "–" if row.ms_per_image is None else f"{row.ms_per_image:.1f}",
        "gflops": f"{result.flops[row.key] / 1e9:.3g}" if row.key in result.flops else "–",
    }


def _cell(result: Result, row: Row, heading: dict[str, Any]) -> str:
    """A figure, or its interval; a dash where the row has none."""
    column: Column = result.columns[heading["name"]]
    if column.name not in row.figures:
        return "–"
    figure = row[column.name]
    if heading["interval"]:
        return f"{fixed(figure.low, column.decimals)} to {fixed(figure.high, column.decimals)}"
    return fixed(figure.value, column.decimals)


def left_out(result: Result) -> list[dict[str, str]]:
    """The baselines that could not run: title, numbers of calls and reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for key, reason in result.left_out.items():
        reasons.setdefault((key.name, reason), []).append(str(key.nfe))
    return [
        {"title": baseline_title(name), "nfe": ", ".join(steps), "reason": reason}
        for (name, reason), steps in reasons.items()
    ]


def side(result: Result, nfe: int) -> dict[str, Any]:
    """The grids shown together for one number of steps."""
    shown_ = []
    for key in grids.side_by_side(result, nfe):
        row = result.row(key.name, key.nfe)
        calls, best = (
            result.calls_of(row),
            ", best training-free" if row.group == "baseline" else "",
        )
        shown_.append(
            {
                "title": row.title + best,
                "note": f"{calls} calls, {result.column.title} {shown(result, row)}",
                "image": png(pictures.samples_png(result, key)),
            }
        )
    return {"nfe": nfe, "grids": shown_}


def path_strip(result: Result) -> list[dict[str, str]]:
    """Rows of pictures made along the same Brownian paths: teacher first, then fewer and fewer
    steps.
    """
    teacher = SamplerKey("teacher")
    titles = {teacher: result.teacher.title} | {
        row.key: f"{row.title}, {row.nfe} steps" for row in result.rows if row.key != teacher
    }
    return [
        {"title": titles[key], "image": png(pictures.same_paths_png(result, key))}
        for key in result.path_images
    ]


def content(result: Result) -> list[tuple[str, str]]:
    """Digests of the real images and of the extractor."""
    return [(f"{name} (sha256)", value) for name, value in result.content.items()]


def versions() -> list[tuple[str, str]]:
    """What computed the figures."""
    return [
        ("python", platform.python_version()),
        *((p, version(p)) for p in PACKAGES),
    ]


def _uri(draw: Any, theme: Theme) -> str:
    return (
        "data:image/svg+xml;base64," + base64.b64encode(theme_render(draw, theme, "svg")).decode()
    )
