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
from tasks.estimate import fits
from tasks.estimate.advice import advice, changed
from tasks.estimate.devices import GIB, Device, device_like, device_named
from tasks.estimate.fits import check_hardware, misfits
from tasks.estimate.job import Job, take_apart
from tasks.estimate.parts import is_large
from tasks.estimate.report import estimate, resident
from tests.paths import PROJECT

TINY = Device("Tiny", 1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def sd15() -> Job:
    return take_apart(compose(PROJECT, "sd15"), PROJECT)


def device(gib: float) -> Device:
    return Device("A card", gib, 100.0, 10.0)


def test_advice_is_computed_and_what_it_says_is_true(sd15: Job) -> None:
    now, _, _ = resident(sd15, "student", TINY)
    limit = 0.8 * now
    line = advice(sd15, "student", TINY, limit)
    found = re.search(r"student\.batch_size 8 -> (\d+), student\.accumulate 16 -> (\d+)", line)
    assert found is not None, line
    batch, accumulate = map(int, found.groups())
    assert batch * accumulate == 8 * 16
    changes = (("student.batch_size", batch), ("student.accumulate", accumulate))
    then, _, _ = resident(sd15.with_params(changed(sd15.params, changes)), "student", TINY)
    assert then <= limit and line.endswith(f"-> {then / GIB:,.1f} GiB")
    twice = (("student.batch_size", 2 * batch), ("student.accumulate", accumulate // 2))
    if batch < 4:  # the mildest: twice the batch would not do
        more, _, _ = resident(sd15.with_params(changed(sd15.params, twice)), "student", TINY)
        assert more > limit


def test_more_than_one_change_and_none_that_helps(sd15: Job) -> None:
    params = sd15.params
    assert "method.trainable full -> lora" in advice(sd15, "student", TINY, 9 * GIB)
    assert "still more than there is" in advice(sd15, "student", TINY, 1 * GIB)
    assert "trajectories.lane 16 -> " in advice(sd15, "trajectories", TINY, 3 * GIB)
    assert advice(sd15, "dataset", TINY, 0).endswith("nothing in the params makes it smaller")
    assert params.student.batch_size == 8


def test_what_does_not_fit_is_told_by_the_command() -> None:
    found = estimate(compose(PROJECT, "sd15"), PROJECT, device_named("rtx3090"))
    told = misfits(found, 10 * GIB)
    assert any(line.startswith("student: ") and "RTX3090 has 24 GiB" in line for line in told)
    assert any("of disk, 10.0 GiB are free here" in line for line in told)
    assert misfits(estimate(compose(PROJECT, "tiny"), PROJECT), 10 * GIB) == []


def _gpu(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    properties = namedtuple("properties", "name total_memory")("NVIDIA A10", int(gib * GIB))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)


def test_a_large_teacher_is_refused_where_the_hardware_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params = compose(PROJECT, "sd15")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"^no GPU here: the job would take about [\d,]+ days on"):
        check_hardware(params, PROJECT)
    _gpu(monkeypatch, 22)
    with pytest.raises(InputError, match=r"^this job does not fit NVIDIA A10, 22 GiB, in .*->"):
        check_hardware(params, PROJECT)
    _gpu(monkeypatch, 300)
    disk: Any = namedtuple("usage", "free")
    monkeypatch.setattr(fits.shutil, "disk_usage", lambda path: disk(GIB))
    with pytest.raises(InputError, match=r"GiB of disk, 1\.0 GiB are free in"):
        check_hardware(params, PROJECT)
    monkeypatch.setattr(fits.shutil, "disk_usage", lambda path: disk(10**15))
    check_hardware(params, PROJECT)


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
    assert device_named("NVIDIA h100").gib == 80
    assert device_named("A100-40GB").gib == 40
    with pytest.raises(InputError, match=r"^device = H999: expected one of H200, H100, A100-80GB"):
        device_named("H999")
    for name, gib in (("NVIDIA H100 80GB HBM3", 80), ("NVIDIA A100-SXM4-40GB", 40)):
        found = device_like(name)
        assert found is not None and found.gib == gib
    assert device_like("Tesla K80") is None
