"""Noise levels and configurations of the models that ``SigDEGScheduler`` serves.

    vp    alpha^2 = alphas_cumprod[t], sigma^2 = 1 - alpha^2; integer times           DDPM, DDIM, ..
    flow  alpha = 1 - sigma, t = sigma T, sigma shifted towards noise                 FlowMatchEuler
    edm   alpha = 1, t = log(sigma) / 4; the network's input and output are scaled    EDMEuler

This file is self-contained and travels with ``sigdeg_scheduler.py``.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

PREDICTIONS = {
    "vp": ("epsilon", "v_prediction", "sample"),
    "flow": ("flow_prediction",),
    "edm": ("epsilon", "v_prediction"),
}
Levels = tuple[np.ndarray, np.ndarray, np.ndarray]
NEAR = (
    1e-6  # levels closer than this, relatively, are the same: pipelines hand them over in float32
)


def given_levels(
    config: Any,
    steps: int | None,
    timesteps: Sequence[float] | None,
    sigmas: Sequence[float] | None,
) -> list[float] | None:
    """The coarse levels that the caller of ``set_timesteps`` gives, as times (vp) or as sigmas
    before the shift (flow); None where there are only ``steps``. ValueError if they do not fit.
    """
    if timesteps is None and sigmas is None:
        if steps is None:
            raise ValueError("set_timesteps: expected num_inference_steps, timesteps or sigmas")
        return None
    if timesteps is not None and sigmas is not None:
        raise ValueError("set_timesteps: expected timesteps or sigmas, not both")
    name, given = ("timesteps", timesteps) if sigmas is None else ("sigmas", sigmas)
    if config.process == "edm" or (config.process == "vp" and name == "sigmas"):
        raise ValueError(f"{name}: no levels of {config.process} models; use coarse_grid, points")
    values = [float(v) for v in given or ()]
    if not values or (steps is not None and steps != len(values)):
        raise ValueError(f"{name} = {values}: expected {steps or 'one or more'} values")
    if config.process == "flow" and name == "timesteps":
        return [t / config.num_train_timesteps for t in values]
    return values


def fine_levels(
    config: Any, cumprod: Tensor | None, given: list[float] | None, mu: float | None
) -> tuple[Levels, list[int] | None]:
    """t (K,), alpha and sigma (K + 1,) of the fine chain, the last level clean, and the indices of
    the ``given`` coarse levels in it. ``cumprod``: alphas_cumprod (T,) of vp models; ``mu``: the
    dynamic shift of flow models.
    """
    steps = int(config.chain_steps)
    if cumprod is not None:
        levels = vp_levels(cumprod.double().numpy(), steps, given)
        where, wanted = levels[0], given
    elif config.process == "flow":
        levels = flow_levels(config, steps, mu, given)
        wanted = None if given is None else shifted(config, np.asarray(given), mu).tolist()
        where = levels[2]
    else:
        levels, wanted, where = edm_levels(config, steps), None, np.zeros(0)
    indices = None
    if wanted is not None:
        indices = [*(int(np.abs(where - level).argmin()) for level in wanted), len(levels[0])]
    return levels, indices


def vp_levels(cumprod: np.ndarray, steps: int, given: Sequence[float] | None = None) -> Levels:
    """t (K,), alpha and sigma (K + 1,) of the chain with ``steps`` trailing times and the ``given``
    ones. ``cumprod``: (T,).
    """
    total = len(cumprod)
    times = np.round(np.arange(total, 0, -total / steps))[:steps] - 1
    times = _with_given(times, given, "timesteps", total - 1)
    squared = np.append(cumprod[times.astype(np.int64)], 1.0)
    return times, np.sqrt(squared), np.sqrt(1.0 - squared)


def flow_levels(
    config: Any, steps: int, mu: float | None = None, given: Sequence[float] | None = None
) -> Levels:
    """The same of a flow-matching model; ``given`` are sigmas before the shift, in (0, 1]. The
    third array is sigma, shifted as the model's own scheduler does; ``mu`` is its dynamic shift.
    """
    sigma = shifted(config, np.linspace(1.0, 0.0, steps + 1)[:-1], mu)
    if given is not None:
        _with_given(sigma, given, "sigmas", 1.0)
        sigma = _with_given(sigma, shifted(config, np.asarray(given, np.float64), mu), "sigmas", 1)
    sigma = np.append(sigma, 0.0)
    return sigma[:-1] * config.num_train_timesteps, 1.0 - sigma, sigma


def edm_levels(config: Any, steps: int) -> Levels:
    """The same of an EDM model: Karras et al. (2022), equation 5, or evenly in log sigma."""
    ramp, ends = np.linspace(0.0, 1.0, steps), (config.sigma_max, config.sigma_min)
    if config.sigma_schedule == "karras":
        high, low = (end ** (1.0 / config.rho) for end in ends)
        sigma = (high + ramp * (low - high)) ** config.rho
    elif config.sigma_schedule == "exponential":
        sigma = np.geomspace(*ends, steps)
    else:
        raise ValueError(
            f"sigma_schedule = {config.sigma_schedule!r}: expected karras or exponential"
        )
    return np.log(sigma) / 4.0, np.ones(steps + 1), np.append(sigma, 0.0)


def shifted(config: Any, sigma: np.ndarray, mu: float | None) -> np.ndarray:
    """FlowMatchEulerDiscreteScheduler's shift of sigmas in (0, 1], then its stretch to an end."""
    if config.use_dynamic_shifting:
        if mu is None:
            raise ValueError("mu: expected a number, since use_dynamic_shifting is on")
        scale = math.exp(mu) if config.time_shift_type == "exponential" else mu
        # these brackets keep pure noise at sigma = 1, where alpha = 0 has no log-SNR
        sigma = scale / (scale + (1.0 / sigma - 1.0))
    else:
        sigma = config.shift * sigma / (1.0 + (config.shift - 1.0) * sigma)
    if config.shift_terminal:
        sigma = 1.0 - (1.0 - sigma) * (1.0 - config.shift_terminal) / (1.0 - sigma[-1])
    return sigma


def _with_given(
    levels: np.ndarray, given: Sequence[float] | np.ndarray | None, name: str, top: float
) -> np.ndarray:
    """Descending ``levels`` that start at given[0] and contain all ``given``; ValueError unless
    those fall, from ``top`` at most.
    """
    if given is None:
        return levels
    wanted = np.asarray(given, np.float64)
    low = wanted[-1] > 0 if name == "sigmas" else wanted[-1] >= 0
    if not low or wanted[0] > top * (1 + NEAR) or np.any(np.diff(wanted) >= 0):
        raise ValueError(f"{name} = {wanted.tolist()}: expected falling values from {top} at most")
    below = levels[levels < wanted[0]]
    near = np.abs(below[:, None] - wanted).min(1) <= NEAR * np.maximum(below, NEAR)
    return np.sort(np.concatenate([below[~near], wanted]))[::-1]


def denoised(config: Any, output: Tensor, X: Tensor, alpha: float, sigma: float) -> Tensor:
    """The denoised image from the network's output at X, both (n, C, *shape), clipped or
    thresholded where the model's is; a learned variance, a second half of channels, is left out.
    """
    if output.shape[1] == 2 * X.shape[1]:
        output = output[:, : X.shape[1]]
    if output.shape != X.shape:
        raise ValueError(f"network output {tuple(output.shape)}: expected {tuple(X.shape)}")
    if config.process == "edm":  # Karras et al. (2022), equation 7
        total = sigma**2 + config.sigma_data**2
        sign = -1.0 if config.prediction_type == "v_prediction" else 1.0
        scale = sign * sigma * config.sigma_data / math.sqrt(total)
        return config.sigma_data**2 / total * X + scale * output
    if config.prediction_type == "epsilon":
        D = (X - sigma * output) / alpha
    elif config.prediction_type == "v_prediction":
        D = alpha * X - sigma * output
    elif config.prediction_type == "flow_prediction":
        D = X - sigma * output
    else:
        D = output
    if config.thresholding:
        return _thresholded(D, config.dynamic_thresholding_ratio, config.sample_max_value)
    bound = config.clip_sample_range
    return D.clamp(-bound, bound) if config.clip_sample else D


def _thresholded(D: Tensor, ratio: float, limit: float) -> Tensor:
    """Dynamic thresholding (Saharia et al. 2022): each image clipped to a quantile of its absolute
    values, within 1 to ``limit``, and divided by it.
    """
    bound = torch.quantile(D.flatten(1).abs(), ratio, dim=1).clamp(1.0, limit)
    bound = bound.view(-1, *[1] * (D.ndim - 1))
    return D.clamp(-bound, bound) / bound


def translated(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of another diffusers scheduler in this one's terms: its class's defaults
    filled in, ``process`` and ``prediction_type`` from its kind. Other keys stay, for the way back.

    ValueError for a scheduler of no known kind.
    """
    name = str(config.get("_class_name", "given"))
    source = getattr(diffusers, name, None)
    parameters = {} if source is None else inspect.signature(source.__init__).parameters
    defaults = {k: p.default for k, p in parameters.items() if p.default is not p.empty}
    full = {**defaults, **{k: v for k, v in config.items() if k != "_use_default_values"}}
    betas = "beta_schedule" in full
    flow = full.get("use_flow_sigmas") or full.get("prediction_type") == "flow_prediction"
    if flow or (not betas and "shift" in full):
        return _flow(full, name)
    if not betas and "sigma_data" in full:
        if full.get("final_sigmas_type", "zero") != "zero":
            raise ValueError(f"scheduler {name} with final_sigmas_type sigma_min: expected zero")
        return full | {"process": "edm"}
    if not betas or full.get("timestep_type", "discrete") != "discrete":
        raise ValueError(
            f"scheduler {name}: expected one with discrete times and a beta schedule, a "
            "flow-matching one or an EDM one"
        )
    # Euler's sigma_min and rho are limits of its own time grid, not of the model
    other = ("sigma_min", "sigma_max", "sigma_data", "rho", "shift", "use_flow_sigmas")
    return {k: v for k, v in full.items() if k not in other} | {"process": "vp"}


def _flow(full: dict[str, Any], name: str) -> dict[str, Any]:
    if full.get("invert_sigmas"):
        raise ValueError(f"scheduler {name} with invert_sigmas: expected sigma = 1 to be noise")
    if "flow_shift" in full:
        full["shift"] = full["flow_shift"]
    other = ("sigma_min", "sigma_max", "clip_sample", "thresholding", "use_flow_sigmas")
    full = {k: v for k, v in full.items() if k not in other}
    return full | {"process": "flow", "prediction_type": "flow_prediction"}


def check_range(name: str, value: float, low: float, high: float) -> None:
    """ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name} = {value}: expected {low} to {high}")


def seeded(seed: int, start: Tensor) -> torch.Generator:
    """A generator on the CPU whose stream is a function of the seed and the start state."""
    digest = hashlib.blake2b(seed.to_bytes(8, "little", signed=True), digest_size=8)
    digest.update(start.detach().float().cpu().numpy().tobytes())
    return torch.Generator().manual_seed(int.from_bytes(digest.digest(), "little") >> 1)
