"""Results of a benchmark that nobody has run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.benchmark.plan import RESULTS, Plan, Run, runs_of
from scripts.benchmark.runs import METRICS, RECORD, TABLE, State
from tasks.utils.atomic import atomic_write_json

DOMAIN = {
    "title": "Small",
    "about": "Trying.",
    "metrics": ["kid", "frechet"],
    "jobs": {
        "rivals": {"title": "Untrained", "preset": "tiny", "rows": "rivals", "seeds": [0]},
        "sigdeg": {"title": "Sig-DEG", "preset": "tiny"},
        "sfd": {"title": "SFD", "preset": "tiny", "note": "untuned"},
    },
}


def plan() -> Plan:
    return Plan.model_validate(
        {
            "name": "benchmark",
            "title": "Benchmark",
            "about": "All have the same teacher.",
            "seeds": [0, 1, 2],
            "calls": [1, 2],
            "domains": {"small": DOMAIN},
        }
    )


def run_of(job: str, seed: int) -> Run:
    return next(run for run in runs_of(plan()) if (run.job, run.seed) == (job, seed))


def figures(title: str, kid: float, gflops: float = 1.0) -> dict[str, Any]:
    ends = {"kid": kid, "kid_low": kid - 0.01, "kid_high": kid + 0.02}
    return {"title": title, **ends, "frechet": 10 * kid, "gflops": gflops}


def write_run(project: Path, run: Run, metrics: dict[str, Any], **record: Any) -> State:
    """The files of one finished run, and its state."""
    folder = run.folder(project)
    atomic_write_json(folder / METRICS, {"evaluation": {"samples": 10}, **metrics})
    (folder / TABLE).write_text(
        "sampler,group,nfe,spacing\nunipc,baseline,1,trailing\nunipc,baseline,2,karras\n"
        "ddim,baseline,1,trailing\nddim,baseline,2,trailing\nstudent,student,1,\n"
    )
    content: dict[str, Any] = {
        "commit": "0123456789abcdef",
        "finished": "2026-11-30",
        "device": "CPU, AVX2",
        "threads": 1,
        "versions": {"torch": "2"},
        "cost": {
            "teacher": {"seconds": 1.0},
            "student": {"network_evaluations": 1000, "trained_evaluations": 300},
        },
        "trajectories": 5000,
        "teacher_calls": 20,
        "calls": {"1": 1, "2": 2},
    } | record
    atomic_write_json(folder / RECORD, content)
    return State(content)


def write_rivals(project: Path) -> State:
    return write_run(
        project,
        run_of("rivals", 0),
        {
            "teacher": {"full": figures("Teacher, full run", 0.02, 20.0)},
            "real": {"full": {k: v for k, v in figures("Real", 0.0).items() if k != "gflops"}},
            "student": {"nfe1": figures("Student", 0.9), "nfe2": figures("Student", 0.8)},
            "untrained": {"nfe1": figures("Untrained", 0.9), "nfe2": figures("Untrained", 0.8)},
            "unipc": {"nfe1": figures("UniPC", 0.7), "nfe2": figures("UniPC", 0.05, 2.0)},
            "ddim": {"nfe1": figures("DDIM", 0.6), "nfe2": figures("DDIM", 0.5, 2.0)},
        },
    )


def write_times(project: Path) -> None:
    place = project / RESULTS / "small" / "timing.json"
    ms = {"teacher": {"1": [2.0, 1.5, 2.5]}, "unipc": {"2": [4.5, 4.0, 5.0]}}
    ms["sigdeg"] = {"1": [3.25, 3.0, 3.5]}
    about = {"commit": "f" * 40, "batch": 32, "rounds": 7, "of": {}, "device": "CPU", "threads": 1}
    atomic_write_json(place, about | {"ms": ms})
