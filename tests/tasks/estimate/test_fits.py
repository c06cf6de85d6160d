"""What is said of a job that does not fit, and which runs are refused."""

from __future__ import annotations

import re
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from models.common.errors import InputError
from tasks.config.presets import compose
from tasks.config.schema import Params
from tasks.estimate import fits
from tasks.estimate.advice import advice, changed
from tasks.estimate.devices import GIB, Device, device_like, device_named
from tasks.estimate.fits import check_hardware, misfits
from tasks.estimate.fixed import CUDA_CONTEXT
from tasks.estimate.job import Job, take_apart
from tasks.estimate.parts import is_large
from tasks.estimate.report import estimate, resident
from tests.models.teachers.pipelines import stable_diffusion
from tests.paths import PROJECT

CARD = Device("A card", 1.0, 100.0, 10.0)


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Params:
    """The recipe for Stable Diffusion 1.5 around a pipeline with few weights."""
    folder = tmp_path_factory.mktemp("fits") / "teacher"
    stable_diffusion().save_pretrained(folder)
    small = ["teacher.size=32", "student.steps=8", "student.validation_samples=2"]
    small += ["method.lora_rank=1", "evaluation.samples=16", "evaluation.features={kind: mnist}"]
    return compose(PROJECT, "sd15", [f"teacher.path={folder}", *small])


@pytest.fixture(scope="module")
def job(params: Params) -> Job:
    return take_apart(params, PROJECT)


def on_card(job: Job, stage: str = "student") -> float:
    """Bytes of tensors on the device."""
    return resident(job, stage, CARD)[0] - CUDA_CONTEXT


def limit(job: Job, stage: str, share: float) -> float:
    return share * on_card(job, stage) + CUDA_CONTEXT


def test_advice_is_computed_and_what_it_says_is_true(job: Job) -> None:
    allowed = limit(job, "student", 0.5)
    line = advice(job, "student", CARD, allowed)
    found = re.search(r"student\.batch_size 8 -> (\d+), student\.accumulate 16 -> (\d+)", line)
    assert found is not None, line
    batch, accumulate = map(int, found.groups())
    assert batch * accumulate == 8 * 16

    def with_batch(rows: int) -> float:
        changes = (("student.batch_size", rows), ("student.accumulate", 128 // rows))
        return resident(job.with_params(changed(job.params, changes)), "student", CARD)[0]

    assert with_batch(batch) <= allowed < with_batch(2 * batch)  # the mildest that does
    assert line.endswith(f"-> {with_batch(batch) / GIB:,.1f} GiB")


def test_more_changes_where_one_is_not_enough_and_none_that_helps(job: Job) -> None:
    line = advice(job, "student", CARD, CUDA_CONTEXT)
    assert "method.trainable full -> lora" in line and "still more than there is" in line
    line = advice(job, "trajectories", CARD, limit(job, "trajectories", 0.6))
    assert line.startswith("trajectories: trajectories.lane 16 -> ")
    assert "trajectories.batch_size 16 -> " in line
    assert advice(job, "dataset", CARD, 0).endswith("nothing in the params makes it smaller")


def test_less_is_held_with_checkpointing_and_with_adapters(job: Job) -> None:
    plain, lora = (("student.gradient_checkpointing", False),), (("method.trainable", "lora"),)
    without = job.with_params(changed(job.params, plain))
    assert on_card(without) > on_card(job)
    adapters = job.with_params(changed(job.params, lora))
    assert adapters.networks.student_weights[1] < job.networks.student_weights[1]


def test_what_does_not_fit_is_told_by_the_command(params: Params, job: Job) -> None:
    found = estimate(params, PROJECT, Device("A card", limit(job, "student", 0.5) / GIB, 1, 1))
    told = misfits(found, 2**20)
    assert any(line.startswith("student: ") and "(A card has 0." in line for line in told)
    assert any(line.endswith("of disk, 1.0 MiB are free here") for line in told)


def _gpu(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    properties = namedtuple("properties", "name total_memory")("NVIDIA A10", int(size))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)


def test_runs_are_refused_where_the_hardware_is_missing(
    params: Params, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fits, "take_apart", lambda params, root: job)
    _gpu(monkeypatch, limit(job, "student", 0.5))
    with pytest.raises(InputError, match=r"^this job does not fit NVIDIA A10, .* -> .*--anyway"):
        check_hardware(params, PROJECT)
    _gpu(monkeypatch, 300 * GIB)
    usage: Any = namedtuple("usage", "free")
    monkeypatch.setattr(fits.shutil, "disk_usage", lambda path: usage(2**20))
    with pytest.raises(InputError, match=r"of disk, 1\.0 MiB are free in .*--anyway"):
        check_hardware(params, PROJECT)
    monkeypatch.setattr(fits.shutil, "disk_usage", lambda path: usage(10**15))
    check_hardware(params, PROJECT)


@pytest.mark.slow
def test_a_published_teacher_is_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"^no GPU here: the job would take about [\d,]+ days on"):
        check_hardware(compose(PROJECT, "sd15"), PROJECT)
    told = misfits(estimate(compose(PROJECT, "sd15"), PROJECT, device_named("rtx3090")), 10**15)
    assert any("RTX3090 has 24 GiB" in line and "->" in line for line in told)


def test_small_jobs_are_not_looked_at(tmp_path: Path) -> None:
    for preset in ("tiny", "paths", "mnist-sigdeg", "text-to-image", "emoji-swd"):
        assert not is_large(compose(PROJECT, preset), PROJECT)
    network = tmp_path / "teacher" / "unet" / "diffusion_pytorch_model.safetensors"
    network.parent.mkdir(parents=True)
    with network.open("wb") as file:
        file.truncate(10**9)  # a hole, no disk space
    params = compose(PROJECT, "tiny", [f"teacher.path={tmp_path / 'teacher'}"])
    assert is_large(params, PROJECT)


def test_what_the_estimate_cannot_know_is_left_to_the_stages(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = compose(PROJECT, "tiny", [f"teacher.path={tmp_path}"])
    check_hardware(params, PROJECT)
    assert "not checked whether the job fits this machine: teacher.path" in caplog.text


def test_devices_by_name() -> None:
    assert device_named("NVIDIA h100").gib == 79
    assert device_named("A100-40GB").gib == 39.4
    with pytest.raises(InputError, match=r"^device = H999: expected one of H200, H100, A100-80GB"):
        device_named("H999")
    for name, gib in (("NVIDIA H100 80GB HBM3", 79), ("NVIDIA A100-SXM4-40GB", 39.4)):
        found = device_like(name)
        assert found is not None and found.gib == gib
    assert device_like("Tesla K80") is None
