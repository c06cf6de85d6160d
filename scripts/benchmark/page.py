"""A plan's page, from what has been measured; what has not been is said to be missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from models.evaluation.registry import metric_class
from scripts.benchmark.intervals import FORMULA, Combined
from scripts.benchmark.plan import Domain, Plan, Run
from scripts.benchmark.rows import Row, rows_of, times_of
from scripts.benchmark.runs import State

DIVERGED = 1e4  # no metric has such values of samples that are any good
HEAD = """\
# {title}

Made by `make {name}` from [conf/{name}.yaml](../conf/{name}.yaml).
Written by the program, not by hand.
{about}
Finished runs are not done again. `make {name} ARGS="--only {domain} --seeds 1"` does a part.

Lower is better in all tables; the best figure of a column that is no reference is bold.
A dash: the sampler is not made for this number of calls. *not run*: nobody has measured it yet.

"""


def render(
    project: Path, plan: Plan, states: Mapping[Run, State], failed: Mapping[Run, str]
) -> str:
    """The whole page. ``failed``: why runs that were asked for have no result."""
    first, about = next(iter(plan.domains)), plan.about.strip()
    parts = [HEAD.format(title=plan.title, about=about, name=plan.name, domain=first)]
    parts += ["## The intervals\n\n", FORMULA, "\n"]
    for name, domain in plan.domains.items():
        own = {run: state for run, state in states.items() if run.domain == name}
        parts += [f"\n## {domain.title}\n\n{domain.about}\n", *_missing(domain, own, failed)]
        rows = rows_of(project, domain, own)
        if rows:
            parts += _tables(project, name, domain, rows, own, plan)
    return "".join(parts)


def _missing(
    domain: Domain, states: Mapping[Run, State], failed: Mapping[Run, str]
) -> Iterable[str]:
    """What a reader must not take for measured."""
    lines = []
    for job, section in domain.jobs.items():
        own = {run: state for run, state in states.items() if run.job == job}
        absent = [str(run.seed) for run, state in own.items() if state.record is None]
        if absent:
            lines.append(f"- *not run*: {section.title}, seed {', '.join(absent)}\n")
        for run, state in own.items():
            if state.record is not None and state.changed:
                lines.append(
                    f"- *stale*: {section.title}, seed {run.seed}, measured at commit "
                    f"{state.record['commit'][:10]} with other {', '.join(state.changed)}\n"
                )
            if run in failed:
                lines.append(f"- *failed*: {section.title}, seed {run.seed}: {failed[run]}\n")
        if section.note:
            lines.append(f"- {section.title}: {section.note}\n")
    return ["\n", *lines] if lines else []


def _tables(
    project: Path,
    name: str,
    domain: Domain,
    rows: Sequence[Row],
    states: Mapping[Run, State],
    plan: Plan,
) -> Iterable[str]:
    there = {calls for row in rows for calls in row.figures if calls is not None}
    columns = sorted({*plan.calls, *there})
    for metric in domain.metrics:
        yield from _quality(metric, rows, columns)
    yield from _spacings(rows)
    times = times_of(project, name)
    yield from _cost(rows, columns, times, states)
    yield from _training(domain, states)
    yield from _origin(states)


def _quality(metric: str, rows: Sequence[Row], columns: Sequence[int]) -> Iterable[str]:
    kind = metric_class(metric)
    lower = kind.lower_is_better
    yield f"\n### {kind.title}\n\n"
    if lower is False:
        yield "Higher is better here.\n\n"
    if not any(row.has_ends(metric) for row in rows):
        yield "This figure has no interval of its own: that of the seeds alone is shown.\n\n"
    best = {}
    for calls in columns:
        found = {row.key: row.figure(metric, calls) for row in rows if row.group != "reference"}
        values = {key: figure.value for key, figure in found.items() if figure is not None}
        if values and lower is not None:
            best[calls] = (min if lower else max)(values, key=values.__getitem__)
    yield from _table_head(["sampler", *map(str, columns)])
    for row in rows:
        whole = row.figure(metric, None)
        cells = [_quality_cell(whole, kind.decimals)] if whole else []
        title = f"{row.title}: {cells[0]}" if cells else row.title
        if row.group == "student":
            title += f", {len(row.seeds)} seed{'s' * (len(row.seeds) > 1)}"
        shown = []
        for calls in columns:
            figure, strong = row.figure(metric, calls), best.get(calls) == row.key
            cell = _quality_cell(figure, kind.decimals, strong, row.group == "student")
            shown.append("" if whole else cell)
        yield _line([title, *shown])


def _quality_cell(
    figure: Combined | None, decimals: int, strong: bool = False, trained: bool = False
) -> str:
    if figure is None:
        return "-"
    value = _number(figure.value, decimals)
    value = f"**{value}**" if strong else value
    mark = "\\*" if trained and figure.seeds == 1 else ""
    if figure.low == figure.high:
        return f"{value}{mark}"
    return f"{value} [{_number(figure.low, decimals)}, {_number(figure.high, decimals)}]{mark}"


def _number(value: float, decimals: int) -> str:
    """As many decimals as the metric has; figures of samplers that diverge in short."""
    return f"{value:.1e}" if abs(value) >= DIVERGED else f"{value:.{decimals}f}"


def _spacings(rows: Sequence[Row]) -> Iterable[str]:
    told = []
    for row in rows:
        grids: dict[str, list[str]] = {}
        for calls, spacing in sorted(row.spacing.items()):
            grids.setdefault(spacing, []).append(str(calls))
        if len(grids) > 1 or "trailing" not in grids:
            each = "; ".join(f"{grid} at {', '.join(own)}" for grid, own in grids.items())
            told += [f"{row.title}: {each}."] if grids else []
    if told:
        yield "\nTime grids chosen on training data (trailing where nothing is said): "
        yield " ".join(told) + "\n"


def _cost(
    rows: Sequence[Row],
    columns: Sequence[int],
    times: Mapping[str, Any],
    states: Mapping[Run, State],
) -> Iterable[str]:
    """GFLOP and milliseconds of one sample."""
    yield "\n### Cost of one sample\n\n"
    yield "GFLOP: matrix products and convolutions, as torch counts them"
    if times:
        yield (
            f"; milliseconds in batches of {times['batch']}, samplers in turns, median of "
            f"{times['rounds']} rounds with quartiles, on {times['device']}, {times['threads']} "
            f"threads, commit {times['commit'][:10]}.\n\n"
        )
    else:
        yield ". Milliseconds: *not run*.\n\n"
    ms = times.get("ms", {})
    yield from _table_head(["sampler", *map(str, columns)])
    for row in rows:
        if row.key == "real":
            continue
        if row.key == "teacher":
            yield _line([_teacher_cost(row, ms, states), *[""] * len(columns)])
            continue
        steps = _steps_of(row, states)
        cells = []
        for calls in columns:
            time = ms.get(row.key, {}).get(str(steps.get(calls, calls)))
            parts = [f"{row.gflops[calls]:.3g} GFLOP"] if calls in row.gflops else []
            parts += [f"{time[0]:.3g} ms ({time[1]:.3g} to {time[2]:.3g})"] if time else []
            cells.append(", ".join(parts) or "-")
        yield _line([row.title, *cells])


def _teacher_cost(row: Row, ms: Mapping[str, Any], states: Mapping[Run, State]) -> str:
    calls = next(s.record["teacher_calls"] for s in states.values() if s.record)
    told = [f"{row.gflops[None]:.3g} GFLOP"] if None in row.gflops else []
    if "teacher" in ms:
        told.append(f"{calls} x {ms['teacher']['1'][0]:.3g} ms")
    return f"{row.title}, {calls} calls: {', '.join(told) or '-'}"


def _steps_of(row: Row, states: Mapping[Run, State]) -> dict[int, int]:
    """A student's number of steps by its number of network calls."""
    records = [s.record for run, s in states.items() if run.job == row.key and s.record]
    return {int(calls): int(steps) for r in records for steps, calls in r["calls"].items()}


def _training(domain: Domain, states: Mapping[Run, State]) -> Iterable[str]:
    yield (
        "\n### Cost of training\n\nNetwork evaluations of one sample: of the teacher for the "
        "trajectories (computed); in the student's stage, calibration, training and validation "
        "together, and those of them with a backward pass (counted). CPU seconds of that stage. "
        "Means over the seeds that ran without an interruption.\n\n"
    )
    heads = ["method", "seeds", "trajectories", "student's stage", "with gradients", "CPU seconds"]
    yield from _table_head(heads)
    yield from _teacher_training(states)
    for job, section in domain.jobs.items():
        records = [s.record for run, s in states.items() if run.job == job and s.record]
        if section.rows != "student" or not records:
            continue
        whole = [r["cost"]["student"] for r in records if not r["cost"]["student"].get("resumed")]
        counts = (
            _mean(whole, key)
            for key in ("network_evaluations", "trained_evaluations", "cpu_seconds")
        )
        paths = fmean(record["trajectories"] for record in records)
        yield _line([section.title, str(len(records)), f"{paths:,.0f}", *counts])


def _teacher_training(states: Mapping[Run, State]) -> Iterable[str]:
    """The cost of a teacher that was trained here, which all methods share."""
    costs = [state.record["cost"]["teacher"] for state in states.values() if state.record]
    whole = [cost for cost in costs if cost.get("trained_evaluations")]
    whole = [cost for cost in whole if not cost.get("resumed")]
    if whole:
        names = ("network_evaluations", "trained_evaluations", "cpu_seconds")
        yield _line(["the teacher, once", "", "-", *(_mean(whole[:1], name) for name in names)])


def _mean(costs: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [cost[key] for cost in costs if key in cost]
    return f"{fmean(values):,.0f}" if values else "not known"


def _origin(states: Mapping[Run, State]) -> Iterable[str]:
    """Commits, days and machines of the figures."""
    records = {run: state.record for run, state in states.items() if state.record}
    groups: dict[str, list[Run]] = {}
    for run, record in records.items():
        versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        where = f"{record['device']}, {record['threads']} threads, {versions}"
        told = f"commit {record['commit'][:10]}, {record['finished']}, {where}"
        groups.setdefault(told, []).append(run)
    yield "\nMeasured at "
    yield "; ".join(
        f"{told} ({', '.join(f'{run.job} {run.seed}' for run in own)})"
        for told, own in groups.items()
    )
    yield ".\n"


def _table_head(names: Sequence[str]) -> Iterable[str]:
    yield _line(names)
    yield _line(["---"] * len(names))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"
