"""What SwD needs to know before it trains: its schedule, and at which sizes the teacher can
validation_kid.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.common.errors import InputError
from models.common.random import generator_for
from models.evaluation.features import FeatureExtractor, extract
from models.evaluation.metrics import kid
from models.methods.swd import config as settings
from models.methods.swd.build import SwDConfig, shrink
from models.methods.swd.schedule import (
    Scale,
    Schedule,
    auto_schedule,
    make_schedule,
    preset,
    radial_power,
    short_run,
)
from models.teachers.base import Denoiser
from tasks.config.schema import Params
from tasks.data.dataset import load_split
from tasks.data.shards import ShardSet
from tasks.utils.progress import Advance, progress

REFERENCE = 2000
BATCH = 125
FLOOR = 1e-3

logger = logging.getLogger(__name__)


def prepare(params: Params, root: Path, teacher: Denoiser, shards: ShardSet) -> dict[str, Any]:
    """The schedule, the data's spectrum, and the teacher's KID at every size: diagnostics that
    training starts from.
    """
    method = _section(params)
    _, height, width = teacher.shape
    if height != width:
        raise InputError(
            f"method.kind = swd: the teacher makes {height}x{width} states; expected square ones"
        )
    count = min(shards.rows("validation"), REFERENCE)
    images = torch.from_numpy(
        np.asarray(shards.array("validation", "Y")[:count][:, -1], dtype=np.float32)
    )
    power = radial_power(images)
    schedule = schedule_of(method, teacher, power)
    diagnostics: dict[str, Any] = {
        "schedule": [list(scale) for scale in schedule],
        "power": power.tolist(),
        "gate": [],
    }
    if method.dmd.weight and method.dmd.gate == "on":
        diagnostics["gate"] = _gate(params, root, teacher, schedule, images)
    return diagnostics


def schedule_of(method: settings.SwDConfig, teacher: Denoiser, power: np.ndarray) -> Schedule:
    """The schedule that `method.schedule` means for a teacher and a spectrum; InputError for one it
    cannot run.
    """
    given, full, stride = method.schedule, teacher.shape[1], teacher.stride
    if isinstance(given, settings.GivenSchedule):
        return make_schedule(given.pairs, full, stride)
    if isinstance(given, settings.AutoSchedule):
        return auto_schedule(power, given.sigmas, full, stride, given.smallest)
    return preset(given.steps, full, stride, given.sigmas)


def swd_config(params: Params, diagnostics: dict[str, Any]) -> SwDConfig:
    """The method's settings from params.yaml and the measured diagnostics."""
    method = _section(params)
    return SwDConfig(
        schedule=tuple(Scale(sigma, size) for sigma, size in diagnostics["schedule"]),
        dmd=method.dmd.weight,
        dmd_excluded_sizes=tuple(row["size"] for row in diagnostics["gate"] if not row["dmd"]),
        guidance=params.trajectories.guidance,
        gan=method.gan.weight,
        gan_features=method.gan.features,
        mmd=method.mmd.weight,
        compare=method.mmd.compare,
        mmd_levels=method.mmd.levels,
        kernel=method.mmd.kernel,
        huber=method.mmd.huber,
        bandwidths=method.mmd.bandwidths,
        fake_updates=method.fake_updates,
        backward_simulation=method.backward_simulation,
        conditioning_limit=method.conditioning_limit,
        trainable=method.trainable,
        lora_rank=method.lora_rank,
        gradient_checkpointing=params.student.gradient_checkpointing,
    )


def _section(params: Params) -> settings.SwDConfig:
    assert isinstance(params.method, settings.SwDConfig)
    return params.method


def _gate(
    params: Params, root: Path, teacher: Denoiser, schedule: Schedule, full: Tensor
) -> list[dict[str, Any]]:
    """Per size: KID of the teacher's own samples made at that size, and of its full-size ones
    reduced to it.

    Both against real images of the training split, reduced alike. The teacher passes (``dmd``)
    where the first is at most `method.dmd.limit` times the second, or times its full-size images'
    own KID: at small sizes all digits look alike, and the second alone is nearly 0.
    """
    from tasks.evaluation.extractor import extractor_of

    method, extractor = _section(params), extractor_of(params, root)
    pixels, _ = load_split(root, "train")
    rows = np.sort(np.random.default_rng(0).permutation(len(pixels))[:REFERENCE])
    real = torch.from_numpy(pixels[rows]).float() / 127.5 - 1
    found, sizes = [], sorted({scale.size for scale in schedule})
    with progress("teacher's samples at every size", len(sizes) * method.dmd.samples) as advance:
        for size in sizes:
            own = _own_samples(params, teacher, size, advance)
            on_device = full[: len(own)].to(teacher.device)
            reduced = torch.cat([shrink(teacher, part, size) for part in on_device.split(BATCH)])
            side = real.shape[-1] * size // teacher.shape[1]
            reference = extract(extractor, F.interpolate(real, size=(side, side), mode="area"))
            value, base = (_kid(extractor, teacher, x0, reference) for x0 in (own, reduced))
            found.append({"size": size, "kid": value, "reduced_kid": base})
    return [
        row | {"dmd": _passes(row, found[-1]["reduced_kid"], method.dmd.limit)} for row in found
    ]


def _passes(row: dict[str, Any], full_size: float, limit: float) -> bool:
    size, value, base = row["size"], row["kid"], row["reduced_kid"]
    message = "teacher at size %d: KID %.5f, its full-size images reduced: %.5f, unreduced: %.5f"
    if value <= limit * max(base, full_size, FLOOR):
        logger.info(message, size, value, base, full_size)
        return True
    off = (
        "; more than %g times worse than both, so DMD is off at this size "
        "(method.dmd.gate=off overrides)"
    )
    logger.warning(message + off, size, value, base, full_size, limit)
    return False


def _own_samples(params: Params, teacher: Denoiser, size: int, advance: Advance) -> Tensor:
    method = _section(params)
    parts = []
    for low in range(0, method.dmd.samples, BATCH):
        n = min(BATCH, method.dmd.samples - low)
        generator = generator_for("cpu", params.student.seed, 17, size, low)
        noise = torch.randn((n, teacher.shape[0], size, size), generator=generator).to(
            teacher.device
        )
        condition = teacher.default_condition(n, low)
        parts.append(
            short_run(teacher, noise, method.dmd.steps, condition, params.trajectories.guidance)
        )
        advance(n)
    return torch.cat(parts)


def _kid(extractor: FeatureExtractor, teacher: Denoiser, x0: Tensor, reference: Tensor) -> float:
    images = torch.cat([teacher.decode(part).float().cpu() for part in x0.split(BATCH)])
    return float(kid(extract(extractor, images), reference))
