from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from models.common.errors import InputError
from scripts.benchmark import page
from scripts.benchmark.plan import Run, runs_of
from scripts.benchmark.runs import State
from tests.scripts.benchmark.made import (
    figures,
    plan,
    run_of,
    write_rivals,
    write_run,
    write_times,
)


def lines_of(project: Path, states: dict[Run, State], failed: dict[Run, str] | None = None):
    everything = {run: states.get(run, State(None)) for run in runs_of(plan())}
    return page.render(project, plan(), everything, failed or {}).splitlines()


def cells(lines: list[str], start: str, table: int = 0) -> list[str]:
    found = [line for line in lines if line.startswith(f"| {start}")]
    return [cell.strip() for cell in found[table].strip("|").split("|")]


def test_nothing_run_says_so(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, {}, {run_of("sfd", 1): "stage student was killed by signal -9"})
    assert "- *not run*: Untrained, seed 0" in lines
    assert "- *not run*: Sig-DEG, seed 0, 1, 2" in lines
    assert "- *failed*: SFD, seed 1: stage student was killed by signal -9" in lines
    assert "- SFD: untuned" in lines
    assert not any(line.startswith("|") for line in lines)


def test_quality_over_seeds(tmp_path: Path) -> None:
    states = {run_of("rivals", 0): write_rivals(tmp_path)}
    for seed, kid in enumerate((0.1, 0.2, 0.3)):
        run = run_of("sigdeg", seed)
        metrics = {"student": {"nfe1": figures("Student", kid)}}
        states[run] = write_run(tmp_path, run, metrics)
    lines = lines_of(tmp_path, states)
    assert cells(lines, "sampler") == ["sampler", "1", "2"]
    # 0.2 -+ sqrt(.01^2 or .02^2 + (4.303 * .1 / sqrt 3)^2); not made for 2 calls
    assert cells(lines, "Sig-DEG") == ["Sig-DEG, 3 seeds", "**0.2000** [-0.0486, 0.4492]", "-"]
    assert cells(lines, "UniPC") == [
        "UniPC",
        "0.7000 [0.6900, 0.7200]",
        "**0.0500** [0.0400, 0.0700]",
    ]
    # references are in the first column, and are never the best
    assert cells(lines, "Teacher, full run") == [
        "Teacher, full run: 0.0200 [0.0100, 0.0400]", "", "",
    ]  # fmt: skip
    assert "- *not run*: SFD, seed 0, 1, 2" in lines
    assert not any("*not run*: Sig-DEG" in line for line in lines)
    # a figure without intervals shows the seeds' alone
    assert cells(lines, "Sig-DEG", table=1)[1] == "**2.00** [-0.48, 4.48]"
    assert "This figure has no interval of its own: that of the seeds alone is shown." in lines
    (grids,) = [line for line in lines if line.startswith("Time grids")]
    assert grids.endswith("UniPC: trailing at 1; karras at 2.")


def test_a_sampler_that_diverges_is_told_in_short() -> None:
    assert page._number(13430389070838.8418, 4) == "1.3e+13"
    assert page._number(0.12345, 4) == "0.1235" and page._number(9999.0, 1) == "9999.0"


def test_one_seed_is_marked_and_stale_results_are_named(tmp_path: Path) -> None:
    run = run_of("sigdeg", 0)
    state = write_run(tmp_path, run, {"student": {"nfe1": figures("Student", 0.1)}})
    lines = lines_of(tmp_path, {run: replace(state, changed=("code", "params"))})
    assert cells(lines, "Sig-DEG")[1] == "**0.1000** [0.0900, 0.1200]\\*"
    assert (
        "- *stale*: Sig-DEG, seed 0, measured at commit 0123456789 with other code, params" in lines
    )
    assert any("Milliseconds: *not run*" in line for line in lines)


def test_costs(tmp_path: Path) -> None:
    states = {run_of("rivals", 0): write_rivals(tmp_path)}
    student = {"student": {"nfe1": figures("Student", 0.1, 1.5)}}
    whole = {"network_evaluations": 1000, "trained_evaluations": 300, "cpu_seconds": 60.0}
    for seed, cost in enumerate((whole, whole | {"cpu_seconds": 80.0}, {"resumed": True} | whole)):
        run = run_of("sigdeg", seed)
        cost = cost | ({"cpu_seconds": 1.0} if seed == 2 else {})
        teacher = {"network_evaluations": 90_000, "trained_evaluations": 80_000}
        costs = {"student": cost, "teacher": teacher | {"cpu_seconds": 500.0}}
        states[run] = write_run(tmp_path, run, student, cost=costs)
    write_times(tmp_path)
    lines = lines_of(tmp_path, states)
    assert cells(lines, "Sig-DEG", 2)[1] == "1.5 GFLOP, 3.25 ms (3 to 3.5)"
    assert cells(lines, "UniPC", 2)[2] == "2 GFLOP, 4.5 ms (4 to 5)"
    assert cells(lines, "Teacher", 2)[0] == "Teacher, full run, 20 calls: 20 GFLOP, 20 x 2 ms"
    # what all methods share, once; the interrupted seed is left out of the means
    assert cells(lines, "the teacher, once")[3:] == ["90,000", "80,000", "500"]
    assert cells(lines, "Sig-DEG", 3) == ["Sig-DEG", "3", "5,000", "1,000", "300", "70"]


def test_a_cost_that_nobody_knows_is_not_a_number(tmp_path: Path) -> None:
    run = run_of("sigdeg", 0)
    student = {"student": {"nfe1": figures("Student", 0.1)}}
    cost = {"student": {"resumed": True, "cpu_seconds": 3}, "teacher": {}}
    state = write_run(tmp_path, run, student, cost=cost)
    assert cells(lines_of(tmp_path, {run: state}), "Sig-DEG", 3)[3:] == ["not known"] * 3


def test_calls_are_the_networks_and_not_the_steps(tmp_path: Path) -> None:
    run = run_of("sigdeg", 0)
    student = {"student": {"nfe2": figures("Student", 0.1)}}
    state = write_run(tmp_path, run, student, calls={"2": 3})
    write_times(tmp_path)
    lines = lines_of(tmp_path, {run: state})
    assert cells(lines, "sampler") == ["sampler", "1", "2", "3"]
    assert cells(lines, "Sig-DEG")[1:3] == ["-", "-"]


def test_a_figure_that_was_not_measured_is_refused(tmp_path: Path) -> None:
    run = run_of("sigdeg", 0)
    state = write_run(tmp_path, run, {"student": {"nfe1": {"title": "Student", "kid": 0.1}}})
    with pytest.raises(InputError, match="small/sigdeg, seed 0: measured without frechet"):
        lines_of(tmp_path, {run: state})
