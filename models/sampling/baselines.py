"""Training-free samplers of diffusers on a teacher, each with exactly `nfe` network calls.

Every sampler gets its better settings at few steps: trailing spacing (the first call sees pure
noise), a last step that goes to clean data, lower order in the last steps. The multistep solvers
can also space their steps evenly in log-SNR (`logsnr`, Lu et al. 2022) or by Karras et al. 2022
(`karras`). Samplers: DDPM arXiv 2006.11239, DDIM 2010.02502, DPM-Solver++ 2211.01095, UniPC
2302.04867.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from models.common.errors import InputError
from models.teachers.conditioning import Condition

BASELINES = ("ddim", "ddpm", "dpmpp_2m", "sde_dpmpp_2m", "unipc")
SPACINGS = ("trailing", "logsnr", "karras")
TITLES = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "dpmpp_2m": "DPM-Solver++(2M)",
    "sde_dpmpp_2m": "SDE-DPM-Solver++(2M)",
    "unipc": "UniPC",
}
_MULTISTEP: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpmpp_2m": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "lower_order_final": True},
    ),
    "sde_dpmpp_2m": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver++", "lower_order_final": True},
    ),
    "unipc": (UniPCMultistepScheduler, {"lower_order_final": True}),
}
_SPACING_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "dpmpp_2m": {"logsnr": {"use_lu_lambdas": True}, "karras": {"use_karras_sigmas": True}},
    "sde_dpmpp_2m": {"logsnr": {"use_lu_lambdas": True}, "karras": {"use_karras_sigmas": True}},
    "unipc": {"logsnr": {"use_exponential_sigmas": True}, "karras": {"use_karras_sigmas": True}},
}


class Predictor(Protocol):
    """What a teacher has to offer here (models.teachers.base.Denoiser does)."""

    scheduler: Any

    def predict(
        self, x: Tensor, t: Tensor, condition: Condition | None = None, guidance: float = 1.0
    ) -> Tensor: ...


def split_name(name: str) -> tuple[str, str]:
    """`unipc_logsnr` -> (`unipc`, `logsnr`); a plain name has trailing spacing."""
    for spacing in SPACINGS[1:]:
        if name.endswith(f"_{spacing}"):
            return name.removesuffix(f"_{spacing}"), spacing
    return name, "trailing"


def title(name: str) -> str:
    """The name shown to people."""
    sampler, spacing = split_name(name)
    return TITLES.get(sampler, sampler) + ("" if spacing == "trailing" else f" {spacing}")


def variants(teacher: Predictor, name: str) -> list[str]:
    """A sampler's names in all the spacings that apply to this teacher; [] if the sampler does
    not.
    """
    try:
        build_scheduler(teacher, name)
    except InputError:
        return []
    sampler, spacing = split_name(name)
    if spacing != "trailing" or is_flow(teacher):
        return [name]
    return [name, *(f"{sampler}_{option}" for option in _SPACING_OPTIONS.get(sampler, {}))]


def is_flow(teacher: Predictor) -> bool:
    """Whether the teacher is a flow-matching model (alpha = 1 - t, sigma = t)."""
    return isinstance(teacher.scheduler, FlowMatchEulerDiscreteScheduler)


def build_scheduler(teacher: Predictor, name: str) -> Any:
    """The diffusers scheduler of a sampler, with the teacher's noise schedule and prediction type.

    InputError for a sampler that does not exist or does not apply to the teacher.
    """
    sampler, spacing = split_name(name)
    if sampler not in BASELINES:
        raise InputError(
            f"sampler {name}: expected one of {', '.join(BASELINES)}, plain or with _logsnr or "
            "_karras"
        )
    config = dict(teacher.scheduler.config)
    if is_flow(teacher):
        return _flow_scheduler(name, config)
    if "beta_schedule" not in config:
        raise InputError(
            f"sampler {name}: the teacher's {type(teacher.scheduler).__name__} has no beta schedule"
        )
    common: dict[str, Any] = {"timestep_spacing": "trailing", "steps_offset": 0}
    if sampler == "ddim":
        return _grid_only(name, DDIMScheduler.from_config(config, **common, set_alpha_to_one=True))
    if sampler == "ddpm":
        return _grid_only(
            name, DDPMScheduler.from_config(config, **common, variance_type="fixed_small")
        )
    kind, options = _MULTISTEP[sampler]
    if spacing != "trailing":
        options = options | _SPACING_OPTIONS[sampler][spacing]
    return kind.from_config(config, **common, **options, solver_order=2, final_sigmas_type="zero")


def _grid_only(name: str, scheduler: Any) -> Any:
    if split_name(name)[1] != "trailing":
        raise InputError(
            f"sampler {name}: only the multistep solvers have other spacings; use "
            f"{split_name(name)[0]}"
        )
    return scheduler


def _flow_scheduler(name: str, config: dict[str, Any]) -> Any:
    sampler, spacing = split_name(name)
    if sampler == "ddpm" or spacing != "trailing":
        raise InputError(
            f"sampler {name}: not defined for flow matching; use ddim (Euler), dpmpp_2m or unipc"
        )
    if sampler == "ddim":
        return FlowMatchEulerDiscreteScheduler.from_config(config)
    kind, options = _MULTISTEP[sampler]
    return kind(
        num_train_timesteps=config["num_train_timesteps"],
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=config.get("shift", 1.0),
        solver_order=2,
        final_sigmas_type="zero",
        **options,
    )


@torch.inference_mode()
def sample_baseline(
    teacher: Predictor,
    name: str,
    nfe: int,
    noise: Tensor,
    condition: Condition | None = None,
    guidance: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Clean samples x0 (n, C, H, W) from start noise (n, C, H, W) ~ N(0, I), with exactly `nfe`
    calls.

    `generator` feeds the stochastic samplers. InputError for an unknown sampler, or one that does
    not apply.
    """
    scheduler = build_scheduler(teacher, name)
    times = set_steps(scheduler, nfe)
    x = noise * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else noise
    extra = {} if isinstance(scheduler, UniPCMultistepScheduler) else {"generator": generator}
    for step, t in zip(scheduler.timesteps, times, strict=True):
        prediction = teacher.predict(x, torch.as_tensor(t, device=x.device), condition, guidance)
        x = scheduler.step(prediction, step, x, **extra).prev_sample.to(noise.dtype)
    return x


def set_steps(scheduler: Any, nfe: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Set `nfe` steps and return the times (nfe,) at which the network is to be called.

    Solvers that take steps at any noise level round their times down to integers; the network gets
    the time that belongs to the level instead.
    """
    train_steps = int(scheduler.config.num_train_timesteps)
    if not 1 <= nfe <= train_steps:
        raise InputError(
            f"nfe = {nfe}: expected 1 to {train_steps}, the teacher's own number of steps"
        )
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / nfe, nfe).tolist())
        return np.asarray(scheduler.timesteps, np.float32)
    scheduler.set_timesteps(nfe)
    if isinstance(scheduler, DDIMScheduler | DDPMScheduler):
        # Their own trailing grid misses clean data when nfe does not divide the number of training
        # steps.
        stride = train_steps // nfe
        scheduler.timesteps = torch.arange(nfe, 0, -1) * stride - 1
        return np.asarray(scheduler.timesteps, np.float32)
    scheduler.set_begin_index(0)
    sigmas = np.asarray(scheduler.sigmas[:-1], np.float64)
    if scheduler.config.use_flow_sigmas:
        return (sigmas * train_steps).astype(np.float32)
    cumulative = np.asarray(scheduler.alphas_cumprod, np.float64)
    known = np.log((1 - cumulative) / cumulative) / 2
    return np.interp(np.log(sigmas), known, np.arange(train_steps)).astype(np.float32)
