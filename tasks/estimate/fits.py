"""Whether a job fits a device, the host and the disk; and whether a run may start at all."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import psutil
import torch

from models.common.errors import InputError
from tasks.config.schema import Params
from tasks.estimate.advice import advice
from tasks.estimate.devices import GIB, Device
from tasks.estimate.job import Job, take_apart
from tasks.estimate.report import Estimate, resident, size
from tasks.estimate.speed import ByFlops, choose_speed
from tasks.utils.stage_names import STAGES

TOO_LONG = 14 * 24  # hours on a CPU after which a run is not started unasked
logger = logging.getLogger(__name__)
ANYWAY = "`fewstep run --anyway` goes on all the same"


def misfits(found: Estimate, free: float) -> list[str]:
    """A line for each stage that needs more than there is, with what to change; ``free``: bytes of
    the disk.
    """
    told = []
    memory = psutil.virtual_memory().total
    for stage in found.stages:
        if found.device is not None and stage.device > found.device.gib * GIB:
            limit = found.device.gib * GIB
            told.append(
                f"{advice(found.job, stage.name, found.device, limit)} ({found.device.name} has "
                f"{found.device.gib:g} GiB; the most is held in {stage.phase})"
            )
        if found.device is None and stage.host > memory:
            told.append(
                f"{stage.name} needs {size(stage.host)} of memory, this machine has {size(memory)}"
            )
    if found.bytes_on_disk > free:
        told.append(f"{size(found.bytes_on_disk)} of disk, {size(free)} are free here")
    return told


def check_hardware(params: Params, root: Path) -> None:
    """InputError, in one line, for a job that this machine cannot do: no GPU and weeks of a CPU, a
    GPU that is too small, or a disk. What the estimate cannot know is left to the stages.
    """
    try:
        job = take_apart(params, root)
    except InputError as error:
        logger.warning("not checked whether the job fits this machine: %s", error)
        return
    if not torch.cuda.is_available():
        _check_cpu(job)
        return
    properties = torch.cuda.get_device_properties(0)
    device = Device(properties.name, properties.total_memory / GIB, 0.0, 0.0)
    for stage in STAGES:
        needed, _, phase = resident(job, stage, device)
        if needed > properties.total_memory:
            line = advice(job, stage, device, properties.total_memory)
            raise InputError(
                f"this job does not fit {device.name}, {device.gib:g} GiB, in {phase}: {line}; "
                f"{ANYWAY}"
            )
    needed = sum(job.disk(stage).result for stage in STAGES)
    needed += max(job.disk(stage).scratch for stage in STAGES)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise InputError(
            f"this job needs {size(needed)} of disk, {size(free)} are free in {root}; make room, "
            f"or lower trajectories.train; {ANYWAY}"
        )


def _check_cpu(job: Job) -> None:
    speed = choose_speed(job.networks, None)
    assert isinstance(speed, ByFlops)
    seconds = sum(speed.seconds(each) for work in job.work.values() for each in work)
    hours = seconds / speed.threads / 3600
    if hours > TOO_LONG:
        raise InputError(
            f"no GPU here: the job would take about {hours / 24:,.0f} days on this CPU; run it "
            f"where `fewstep estimate --device NAME` says that it fits; {ANYWAY}"
        )
