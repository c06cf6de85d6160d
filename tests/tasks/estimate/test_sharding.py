"""The estimate of sharded training: parts of weights, the same calls."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.config.presets import compose
from tasks.estimate.advice import candidates, changed
from tasks.estimate.job import Job, take_apart
from tests.models.teachers.pipelines import stable_diffusion
from tests.paths import PROJECT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sharding") / "teacher"
    stable_diffusion().save_pretrained(place)
    return place


def job_of(folder: Path, *choices: str) -> Job:
    """Of the recipe for Stable Diffusion 1.5, with few weights; 16 batches of 8 a step."""
    small = ["teacher.size=32", "student.steps=8", "student.validation_samples=2"]
    small += ["method.lora_rank=1", "evaluation.samples=16", "evaluation.features={kind: mnist}"]
    return take_apart(compose(PROJECT, "sd15", [f"teacher.path={folder}", *small, *choices]), PROJECT)  # fmt: skip


def test_copies_that_do_not_fit_are_divided(folder: Path) -> None:
    """Among workers, not in one process; a step keeps its samples: 4 workers, 16 batches each."""
    copies = job_of(folder, "student.workers=4").params
    found = list(candidates(copies, "student"))
    full = ("student.sharding", "full")
    assert (("student.accumulate", 64), full) in found
    assert (("student.batch_size", 4), ("student.accumulate", 128), full) in found
    assert all(changed(copies, each).student.sharding == "full" for each in found if full in each)
    for other in ("student.workers=0", "student.workers=4 student.precision=float16"):
        params = job_of(folder, *other.split()).params
        assert not any(full in each for each in candidates(params, "student"))


@pytest.mark.slow
def test_workers_share_the_calls_and_the_weights(folder: Path) -> None:
    """What is divided is less by its share: weights, moments, averages. The calls are those of one
    process; workers with copies each have as many again.
    """
    full = "student.sharding=full"
    one, four = job_of(folder, full), job_of(folder, full, "student.workers=4")
    copies = job_of(folder, "student.workers=4")
    assert four.evaluations("student") == one.evaluations("student")
    assert copies.evaluations("student")[1] == 4 * one.evaluations("student")[1]
    total, trained = one.networks.student_weights
    roles = len(one.costs.optimized)
    weights = 4 * one.plan.parameters + 4 * one.networks.own_weights * roles
    divided = weights + (8 * roles + 4) * trained
    device = [job.memory("student").device for job in (one, four, copies)]
    gathered = device[1] - (device[0] - 0.75 * divided)
    assert 0 < gathered < 3.5 * 4 * total  # blocks that are whole for a moment; few blocks here
    assert device[2] > device[0]  # gradients are flattened for the average
    assert four.memory("student").host >= weights
