"""From the files of finished runs to the rows of a domain's tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.common.errors import InputError
from models.evaluation.base import Interval
from scripts.benchmark.intervals import Combined, combine
from scripts.benchmark.plan import RESULTS, Domain, Run
from scripts.benchmark.runs import METRICS, TABLE, State
from scripts.benchmark.timing import FILE as TIMING
from tasks.evaluation.tables import NOT_SAMPLERS
from tasks.utils.atomic import read_json

REFERENCES = ("real", "teacher")


@dataclass
class Row:
    """One sampler, at several numbers of network ``calls`` (None: a full run, or real data).

    ``key``: its name among the times; ``figures``: metrics' values of every seed by calls;
    ``ends``: the metrics that have intervals.
    """

    key: str
    title: str
    group: str  # reference, rival or student
    seeds: list[int] = field(default_factory=list)
    figures: dict[int | None, list[Mapping[str, Any]]] = field(default_factory=dict)
    gflops: dict[int | None, float] = field(default_factory=dict)
    spacing: dict[int, str] = field(default_factory=dict)

    def figure(self, metric: str, calls: int | None) -> Combined | None:
        """The metric over all seeds; None where it was not measured."""
        found = [one for one in self.figures.get(calls, ()) if metric in one]
        if not found:
            return None
        return combine([_interval(one, metric) for one in found])

    def has_ends(self, metric: str) -> bool:
        return any(f"{metric}_low" in one for own in self.figures.values() for one in own)


def rows_of(project: Path, domain: Domain, states: Mapping[Run, State]) -> list[Row]:
    """References, training-free samplers and students of the runs that are there, in this order."""
    references: dict[str, Row] = {}
    rivals: dict[str, Row] = {}
    students: dict[str, Row] = {}
    for run, state in states.items():
        if state.record is None:
            continue
        job, metrics = domain.jobs[run.job], _metrics(run.folder(project), run, domain)
        if job.rows == "student":
            row = students.setdefault(run.job, Row(run.job, job.title, "student"))
            calls = {f"nfe{n}": int(c) for n, c in state.record["calls"].items()}
            _add(row, run.seed, metrics["student"], calls)
            continue
        for name, steps in metrics.items():
            if name in NOT_SAMPLERS or name == "student":
                continue
            group = "reference" if name in REFERENCES else "rival"
            title = job.title if name == "untrained" else next(iter(steps.values()))["title"]
            rows = references if name in REFERENCES else rivals
            _add(rows.setdefault(name, Row(name, title, group)), run.seed, steps, {})
        for name, nfe, spacing in _spacings(run.folder(project)):
            if name in rivals:
                rivals[name].spacing[nfe] = spacing
    ordered = [references[name] for name in REFERENCES if name in references]
    return [*ordered, *rivals.values(), *students.values()]


def times_of(project: Path, domain: str) -> dict[str, Any]:
    """The domain's timing.json; {} if there is none."""
    return dict(read_json(project / RESULTS / domain / TIMING) or {})


def _add(
    row: Row, seed: int, steps: Mapping[str, Mapping[str, Any]], calls: Mapping[str, int]
) -> None:
    row.seeds.append(seed)
    for name, figures in steps.items():
        count = None if name == "full" else calls.get(name, int(name.removeprefix("nfe")))
        row.figures.setdefault(count, []).append(figures)
        if "gflops" in figures:
            row.gflops[count] = figures["gflops"]


def _interval(figures: Mapping[str, Any], metric: str) -> Interval:
    value = float(figures[metric])
    low, high = (float(figures.get(f"{metric}_{end}", value)) for end in ("low", "high"))
    return Interval(value, low, high)


def _metrics(folder: Path, run: Run, domain: Domain) -> dict[str, Any]:
    """metrics.json of a run; InputError where it lacks a figure that the page shows."""
    found = dict(json.loads((folder / METRICS).read_text(encoding="utf-8")))
    one: Mapping[str, Any] = next(iter(found["student"].values()))
    if lacking := [metric for metric in domain.metrics if metric not in one]:
        raise InputError(
            f"{run.name}: measured without {lacking[0]}, which the plan shows: expected "
            "it in evaluation.metrics of the preset; add it, or take it out of `metrics`"
        )
    return found


def _spacings(folder: Path) -> Iterable[tuple[str, int, str]]:
    """(sampler, calls, time grid) of the training-free samplers, as chosen on training data."""
    with (folder / TABLE).open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            if line.get("group") == "baseline" and line.get("spacing"):
                yield line["sampler"], int(line["nfe"]), line["spacing"]
