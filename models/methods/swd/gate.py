"""What SwD measures before it trains: its schedule, and the sizes at which DMD can be used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.common.errors import InputError
from models.common.random import generator_for
from models.common.shapes import rows_at_once
from models.evaluation.features import FeatureExtractor, extract
from models.evaluation.kid import kid
from models.methods.base import MethodContext
from models.methods.swd.build import shrink
from models.methods.swd.config import AutoSchedule, GivenSchedule, SwDConfig
from models.methods.swd.schedule import (
    Scale,
    Schedule,
    auto_schedule,
    make_schedule,
    matched_levels,
    preset,
    radial_power,
    short_run,
)
from models.teachers.base import Denoiser

REFERENCE = 2000
BATCH = 125
FLOOR = 1e-3

logger = logging.getLogger(__name__)


def measure_scales(context: MethodContext) -> dict[str, Any]:
    """The schedule, the data's spectrum, and the teacher's KID at every size: diagnostics that
    training starts from.
    """
    assert context.tools is not None, "the schedule follows from the teacher's images"
    config: SwDConfig = context.config
    _, height, width = context.teacher.shape
    if height != width:
        raise InputError(
            f"method.kind = swd: the teacher makes {height}x{width} states; expected square ones"
        )
    images = context.tools.teacher_states(REFERENCE)
    power = radial_power(images)
    schedule = schedule_of(config, height, context.teacher.stride, power)
    diagnostics: dict[str, Any] = {
        "schedule": [list(scale) for scale in schedule],
        "power": power.tolist(),
        "gate": [],
    }
    if config.dmd.weight and config.dmd.gate == "on":
        diagnostics["gate"] = _gate(context, schedule, images)
    return diagnostics


def schedule_of(
    config: SwDConfig, full: int, stride: int, power: np.ndarray | None = None
) -> Schedule:
    """The schedule that `method.schedule` means for a teacher of this size and stride; InputError
    for one it cannot run. ``power``: the data's spectrum; None where it is not known yet, and a
    schedule of kind auto has the full size throughout.
    """
    given = config.schedule
    if isinstance(given, GivenSchedule):
        schedule = make_schedule(given.pairs, full, stride)
    elif not isinstance(given, AutoSchedule):
        schedule = preset(given.steps, full, stride, given.sigmas)
    elif power is None:
        schedule = make_schedule([(sigma, full) for sigma in given.sigmas], full, stride)
    else:
        schedule = auto_schedule(power, given.sigmas, full, stride, given.smallest)
    return matched_levels(schedule) if config.level_mapping == "matched" else schedule


def measured_schedule(diagnostics: Mapping[str, Any]) -> Schedule:
    """The schedule that was written down."""
    return tuple(Scale(sigma, size) for sigma, size in diagnostics["schedule"])


def excluded_sizes(diagnostics: Mapping[str, Any]) -> tuple[int, ...]:
    """Sizes at which the teacher did not pass."""
    return tuple(row["size"] for row in diagnostics["gate"] if not row["dmd"])


def _gate(context: MethodContext, schedule: Schedule, full: Tensor) -> list[dict[str, Any]]:
    """Per size: KID of the teacher's own samples made at that size, and of its full-size ones
    reduced to it.

    Both against real images of the training split, reduced alike. ``full``: its full-size states;
    of prompts they are made here, since cached ones have other prompts. The teacher passes
    (``dmd``) where the first is at most `method.dmd.limit` times the second, or times its full-size
    images' own KID: at small sizes all digits look alike, and the second alone is nearly 0.
    """
    assert context.tools is not None
    dmd, teacher, extractor = context.config.dmd, context.teacher, context.tools.extractor()
    pixels = context.tools.training_images()
    rows = np.sort(np.random.default_rng(0).permutation(len(pixels))[:REFERENCE])
    real = torch.from_numpy(pixels[rows]).float() / 127.5 - 1
    found, sizes = [], sorted({scale.size for scale in schedule})
    total = len(sizes) * dmd.samples
    with context.tools.progress("teacher's samples at every size", total) as advance:
        made = {size: _own_samples(context, size, advance) for size in reversed(sizes)}
        if teacher.condition_kind == "prompts":
            full = made[sizes[-1]].cpu()
        for size in sizes:
            own = made[size]
            on_device = full[: len(own)].to(teacher.device)
            reduced = torch.cat([shrink(teacher, part, size) for part in on_device.split(BATCH)])
            side = real.shape[-1] * size // teacher.shape[1]
            reference = extract(extractor, F.interpolate(real, size=(side, side), mode="area"))
            value, base = (_kid(extractor, teacher, x0, reference) for x0 in (own, reduced))
            found.append({"size": size, "kid": value, "reduced_kid": base})
    return [row | {"dmd": _passes(row, found[-1]["reduced_kid"], dmd.limit)} for row in found]


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


def _own_samples(context: MethodContext, size: int, advance: Callable[[int], None]) -> Tensor:
    teacher, dmd = context.teacher, context.config.dmd
    parts, shape = [], (teacher.shape[0], size, size)
    batch = rows_at_once(shape, BATCH)
    for low in range(0, dmd.samples, batch):
        n = min(batch, dmd.samples - low)
        generator = generator_for("cpu", context.seed, 17, size, low)
        noise = torch.randn((n, *shape), generator=generator)
        condition = teacher.default_condition(n, low)
        noise = noise.to(teacher.device)
        parts.append(short_run(teacher, noise, dmd.steps, condition, context.guidance))
        advance(n)
    return torch.cat(parts)


def _kid(extractor: FeatureExtractor, teacher: Denoiser, x0: Tensor, reference: Tensor) -> float:
    images = torch.cat([teacher.decode(part).float().cpu() for part in x0.split(BATCH)])
    return float(kid(extract(extractor, images), reference))
