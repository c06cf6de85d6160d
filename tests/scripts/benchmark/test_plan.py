from __future__ import annotations

from pathlib import Path

import pytest

from models.common.errors import InputError
from scripts.benchmark.plan import PLANS, check_alike, chosen, read_plan, runs_of
from tests.paths import PROJECT

SMALL = """\
name: benchmark
title: Benchmark
about: Trying.
seeds: [0, 3]
calls: [1, 2]
domains:
  small:
    title: Small
    about: Trying.
    metrics: [kid]
    overrides: ["evaluation.baselines=[]"]
    jobs:
      rivals: {title: Untrained, preset: tiny, rows: rivals, seeds: [0]}
      sigdeg: {title: Sig-DEG, preset: tiny}
      sfd: {title: SFD, preset: tiny, overrides: [method.kind=sfd, trajectories.eta=0.0]}
"""


def write(folder: Path, text: str = SMALL) -> Path:
    path = folder / "benchmark.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["benchmark", "ablation"])
def test_the_shipped_files_can_be_run(name: str) -> None:
    """Every preset composes, and the jobs of a domain can be compared."""
    plan = read_plan(PROJECT / PLANS / f"{name}.yaml")
    assert plan.page == Path(f"docs/{name}.md") and len(plan.seeds) >= 2
    check_alike(PROJECT, plan, runs_of(plan))


def test_the_shipped_benchmark_has_rivals_and_keeps_its_results_apart() -> None:
    plan, other = (
        read_plan(PROJECT / PLANS / f"{name}.yaml") for name in ("benchmark", "ablation")
    )
    assert {"digits", "emoji", "paths"} <= set(plan.domains) and len(plan.seeds) >= 3
    assert not set(plan.domains) & set(other.domains)
    for name, domain in plan.domains.items():
        own = [run for run in runs_of(plan) if run.domain == name]
        assert [job.rows for job in domain.jobs.values()].count("rivals") == 1
        assert own[0].job == "rivals"  # first, so that a part of the page is of use


def test_seeds_are_overrides_and_a_second_one_comes_after_all_first_ones(tmp_path: Path) -> None:
    runs = runs_of(read_plan(write(tmp_path)))
    assert [(run.job, run.seed) for run in runs] == [
        ("rivals", 0), ("sigdeg", 0), ("sfd", 0), ("sigdeg", 3), ("sfd", 3),
    ]  # fmt: skip
    assert runs[-1].overrides[0] == "evaluation.baselines=[]"
    assert runs[-1].overrides[-1] == "student.seed=3"
    assert [run.first for run in runs] == [True, True, True, False, False]


def test_a_part_can_be_chosen(tmp_path: Path) -> None:
    runs = runs_of(read_plan(write(tmp_path)))
    assert chosen(runs, [], None) == runs
    assert [run.job for run in chosen(runs, ["small"], 1)] == ["rivals", "sigdeg", "sfd"]
    assert [run.seed for run in chosen(runs, ["small/sfd"], None)] == [0, 3]
    with pytest.raises(InputError, match="--only smal: no such domain or job in .*small/sfd"):
        chosen(runs, ["smal"], None)
    with pytest.raises(InputError, match="--seeds 0: expected a number of seeds, 1 or more"):
        chosen(runs, [], 0)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("seeds: [0, 3]", "seeds: [0, 0]", r"seeds = \[0, 0\]: expected distinct entries"),
        ("name: benchmark", "name: other", "name = other: expected the file's own, benchmark"),
        ("calls: [1, 2]", "calls: [0]", "calls.0 = 0: expected a number >= 1"),
        ("calls: [1, 2]\n", "", "calls: missing, expected a value"),
        ("metrics: [kid]", "metrics: [kidd]", "metrics.0 = \"kidd\": expected one of .*kid"),
        ("preset: tiny}", "preset: tiny, seed: 3}", "jobs.sigdeg.seed: unknown key"),
        ("rows: rivals", "rows: rival", "rows = \"rival\": expected 'student' or 'rivals'"),
        ("  small:\n", "  ../up:\n", "domains.../up.*\n?"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(tmp_path: Path, old: str, new: str, line: str) -> None:
    assert old in SMALL
    with pytest.raises(InputError, match=line) as caught:
        read_plan(write(tmp_path, SMALL.replace(old, new)))
    assert "\n" not in str(caught.value) and "benchmark.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("[method.kind=sfd,", "[method.kind=sdf,", "small/sfd: .*method.kind"),
        ("preset: tiny}", "preset: tyni}", "small/sigdeg: preset = tyni: no such preset"),
        (
            "preset: tiny}",
            "preset: tiny, overrides: [evaluation.samples=32]}",
            "small/sigdeg has another evaluation.samples than small/rivals",
        ),
        (
            "preset: tiny}",
            "preset: tiny, overrides: [trajectories.steps=40]}",
            "small/sigdeg has another trajectories.steps than small/rivals",
        ),
        ("metrics: [kid]", "metrics: [sig_w1]", "small.metrics = sig_w1: expected one that preset"),
    ],
)
def test_jobs_that_cannot_be_compared_are_refused(
    tmp_path: Path, old: str, new: str, line: str
) -> None:
    assert old in SMALL
    plan = read_plan(write(tmp_path, SMALL.replace(old, new)))
    with pytest.raises(InputError, match=line) as caught:
        check_alike(PROJECT, plan, runs_of(plan))
    assert "\n" not in str(caught.value)
