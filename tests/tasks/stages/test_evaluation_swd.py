"""The evaluation of scale-wise students: at equal calls, at equal compute, beside rivals."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from models.common.errors import InputError
from models.evaluation.base import Interval
from models.methods.export import open_student
from tasks.data.reference import to_bytes
from tasks.data.teacher import load_teacher
from tasks.data.trajectories import open_trajectories
from tasks.evaluation.benchmark import _compare, equal_compute
from tasks.evaluation.load import free_name, load_inputs
from tasks.evaluation.metrics_file import read_metrics
from tasks.evaluation.results import Result, Row, SamplerKey
from tasks.stages import evaluation, student
from tasks.training.selection import Selection
from tests.tasks.distillation import make_root
from tests.tasks.stages.swd_project import PAIRS, swd_settings


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a scale-wise student, a full-size one of the same steps beside it, and their
    evaluation.
    """
    root = make_root(tmp_path_factory.mktemp("evaluated") / "project")
    full = {"schedule": {"kind": "given", "pairs": [[sigma, 8] for sigma, _ in PAIRS]}}
    student.run(swd_settings(method=full | {"dmd": {"weight": 0.0}, "gan": {"weight": 0.0}}), root)
    (root / "data/student").rename(root / "data/full.size")
    settings = {
        "samples": 8,
        "bootstrap": 10,
        "baselines": ["ddim", "unipc"],
        "rivals": ["data/full.size"],
    }
    params = swd_settings(evaluation=settings)
    with pytest.MonkeyPatch.context() as patch:
        scores = itertools.count(
            10, -1
        )  # the last weights are the best, whatever four steps do to a random teacher
        patch.setattr(Selection, "_score", lambda self, nfe: float(next(scores)))
        student.run(params, root)
    evaluation.run(params, root)
    return root


def test_evaluation_compares_at_equal_calls_and_equal_compute(evaluated: Path) -> None:
    table = pd.read_csv(evaluated / "data/evaluation/table.csv").set_index(["sampler", "nfe"])
    cost = table["gflops"]
    one = cost["teacher", 8] / 8
    assert cost["full_size", 3] == pytest.approx(3 * one) and cost["ddim", 3] == pytest.approx(
        3 * one
    )
    assert (
        cost["student", 3]
        == cost["untrained", 3]
        == cost["noise_first", 3]
        < 0.75 * cost["full_size", 3]
    )
    share = (
        sum(size**2 for _, size in PAIRS) / 64
    )  # convolutions, which are most of it, cost by area
    assert cost["student", 3] / one == pytest.approx(share, rel=0.1)
    assert ("unipc", 2) in table.index and np.isfinite(
        table["kid"]
    ).all()  # 2 full-size calls cost the same
    gaps = read_metrics(evaluated)["difference"]["nfe3"]
    assert {
        "to_full_size",
        "to_noise_first",
        "to_untrained",
        "to_best_at_2",
        "to_best_at_3",
    } <= set(gaps)
    assert (evaluated / "data/evaluation/figures/scales.png").stat().st_size > 10_000
    page = (evaluated / "data/evaluation/report.html").read_text()
    assert (
        "Student SwD" in page and "SwD student in full_size" in page and "Brownian path" not in page
    )
    assert "Resolution of the steps" in page
    share = cost["student", 3] / cost["ddim", 3]
    assert (
        f"Its steps cost {share:.0%} of as many training-free ones; for as much compute, 2 calls,"
        in page
    )


def test_rows_are_the_samplers_they_name(evaluated: Path) -> None:
    """Images of four rows again, by hand, from the same start noise and generator."""
    samples = np.load(evaluated / "data/evaluation/samples.npz")
    assert json.loads((evaluated / "data/student/student.json").read_text())["best_step"] > 0
    pipeline, rival = (open_student(evaluated / "data" / name) for name in ("student", "full.size"))
    untrained = pipeline.untrained(load_teacher(evaluated).network)
    noise = torch.from_numpy(
        open_trajectories(evaluated).array("validation", "Y")[:8][:, 0]
    ).float()
    rows = {
        "student": pipeline,
        "untrained": untrained,
        "full_size": rival,
        "noise_first": pipeline,
    }
    seen = []
    for name, pipe in rows.items():
        options = {"noise_first": True} if name == "noise_first" else {}
        x0, _ = pipe.rollout(noise, generator=torch.Generator().manual_seed(1_000_003), **options)
        assert np.abs(to_bytes(x0).astype(int) - samples[f"{name}_nfe3"]).max() <= 1, name
        seen.append(samples[f"{name}_nfe3"].tobytes())
    assert len(set(seen)) == 4


def test_equal_compute_is_counted_for_cheaper_students_only(evaluated: Path) -> None:
    inputs = load_inputs(swd_settings(evaluation={"rivals": ["data/full.size"]}), evaluated)
    assert equal_compute(inputs) == [2]
    assert (
        equal_compute(replace(inputs, generators={"student": inputs.others["full_size"][0]})) == []
    )


def test_rivals_never_take_the_name_of_another_sampler() -> None:
    taken = {"student", "unipc"}
    names = []
    for folder in ("/a/data/student", "/b/data/student", "/b/unipc", "/b/full.size"):
        names.append(free_name(Path(folder), taken | set(names)))
    assert names == ["data_student", "b_data_student", "b_unipc", "full_size"]
    with pytest.raises(InputError, match="/student is named twice"):
        free_name(Path("/student"), taken)


def test_a_rival_that_is_none_is_one_line(evaluated: Path) -> None:
    params = swd_settings(evaluation={"rivals": ["data/teacher"]})
    with pytest.raises(InputError, match=r"evaluation.rivals: data/teacher cannot be opened"):
        evaluation.run(params, evaluated)


def test_other_students_are_compared_at_their_own_numbers_of_steps() -> None:
    names = [
        ("student", "student", 4),
        ("teacher", "teacher", 100),
        ("full", "other", 4),
        ("half", "other", 2),
    ]
    rows = [
        Row(SamplerKey(n, nfe), n, group, nfe, {"kid": Interval(0.1, 0, 1)}, 1.0, 8)
        for n, group, nfe in names
    ]
    result = Result("features", 8, 8, 8, rows=rows)
    evaluator: Any = SimpleNamespace(difference=lambda one, other: Interval(0.0, 0.0, 0.0))
    _compare(result, evaluator)
    rivals = [SamplerKey("teacher", 100), SamplerKey("full", 4), SamplerKey("half", 2)]
    assert set(result.differences) == {(SamplerKey("student", 4), rival) for rival in rivals}
