"""Methods and their settings from flat keywords, for tests: `window_start` is `window.start`, the
weights and options of losses go into their sections. What is not given is plain: one loss, no
calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.methods.base import MethodContext
from models.methods.sigdeg.config import SigDEGConfig
from models.methods.sigdeg.method import SigDEG
from models.methods.swd.config import SwDConfig
from models.methods.swd.method import SwD
from models.methods.swd.schedule import Schedule
from models.sampling.trajectories import PathSpec
from models.teachers.base import Denoiser

SIGDEG = {
    "nfe": (10, 5),
    "look_ahead": 0.0,
    "calibrate": False,
    "window_start": 1,
    "path": 1.0,
    "mmd": 0.0,
}
LOSS_KEYS = SigDEGConfig.model_fields["loss"].annotation.model_fields  # type: ignore[union-attr]
SIGDEG_KEYS = {"window_start": "window.start", "window_until": "window.grow_until"} | {
    key: f"loss.{key}" for key in LOSS_KEYS
}
SWD = {
    "gan": 5e-3,
    "compare": "image",
    "mmd_levels": 0.6,
    "fake_updates": 5,
    "backward_simulation": False,
}
SWD_KEYS = {
    "dmd": "dmd.weight",
    "dmd_levels": "dmd.levels",
    "gan": "gan.weight",
    "gan_features": "gan.features",
    "mmd": "mmd.weight",
    "mmd_levels": "mmd.levels",
    "mmd_features": "mmd.features",
    "fake_levels": "dmd.fake_levels",
    "gan_levels": "gan.levels",
    "gan_updates": "gan.updates",
    "critic": "gan.critic",
} | {
    key: f"mmd.{key}" for key in ("compare", "first_step", "kernel", "huber", "bandwidths", "width")
}


def nested(choices: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """Flat choices as sections."""
    content: dict[str, Any] = {}
    for name, value in choices.items():
        section, _, key = keys.get(name, name).rpartition(".")
        (content.setdefault(section, {}) if section else content)[key] = value
    return content


def sigdeg_config(**choices: Any) -> SigDEGConfig:
    return SigDEGConfig.model_validate(nested(SIGDEG | choices, SIGDEG_KEYS))


def sigdeg(
    teacher: Denoiser,
    spec: PathSpec,
    total: int = 10,
    *,
    gradient_checkpointing: bool = False,
    diagnostics: Mapping[str, Any] | None = None,
    **choices: Any,
) -> SigDEG:
    context = MethodContext(
        teacher,
        sigdeg_config(**choices),
        spec,
        total_steps=total,
        gradient_checkpointing=gradient_checkpointing,
        diagnostics=diagnostics or {},
    )
    return SigDEG(context)


def swd_config(**choices: Any) -> SwDConfig:
    return SwDConfig.model_validate(nested(SWD | choices, SWD_KEYS))


def swd(
    teacher: Denoiser,
    schedule: Schedule,
    *,
    excluded: tuple[int, ...] = (),
    guidance: float = 1.0,
    gradient_checkpointing: bool = False,
    **choices: Any,
) -> SwD:
    """``excluded``: sizes at which the teacher did not pass the gate."""
    diagnostics = {
        "schedule": [list(scale) for scale in schedule],
        "gate": [{"size": size, "dmd": False} for size in excluded],
    }
    context = MethodContext(
        teacher,
        swd_config(**choices),
        guidance=guidance,
        gradient_checkpointing=gradient_checkpointing,
        diagnostics=diagnostics,
    )
    return SwD(context)
