"""Noise schedules of the forward process ``x_t = alpha_t x0 + sigma_t eps``.

variance preserving:  alpha_t^2 = alphas_cumprod[t],  sigma_t^2 = 1 - alpha_t^2
flow matching:        alpha = 1 - t / T,  sigma = t / T
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.common.errors import InputError
from models.teachers.scheduler_options import EDM, FLOW_MATCHING, scheduler_options


@dataclass(frozen=True)
class Levels:
    """K + 1 noise levels, from noise (0) to clean data (K).

    ``t``: (K,) times the network is asked at; ``alpha``, ``sigma``: (K + 1,) float64, with alpha[K]
    = 1, sigma[K] = 0.
    """

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray

    @property
    def steps(self) -> int:
        return len(self.t)


class NoiseSchedule(ABC):
    """alpha and sigma as functions of the network's time, t in [0, ``train_steps``).

    ``discrete``: whether the network knows whole times only.
    """

    discrete: bool

    def __init__(self, train_steps: int):
        self.train_steps = int(train_steps)

    @abstractmethod
    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at times ``t`` (any shape), float32 on t's device."""

    @abstractmethod
    def levels(self, steps: int) -> Levels:
        """The chain of K = ``steps`` levels from pure noise; InputError if K > ``train_steps``."""

    @abstractmethod
    def time_of_snr(self, snr: float) -> float:
        """The time at which (alpha / sigma)^2 is ``snr`` >= 0, or nearest to it."""

    def level(self, t: float) -> tuple[float, float]:
        """alpha and sigma at one time, as numbers."""
        alpha, sigma = self.alpha_sigma(torch.tensor(t, dtype=torch.float64))
        return float(alpha), float(sigma)

    def table(self) -> np.ndarray:
        """(3, T) times, alpha and sigma of the longest chain: what tells schedules apart."""
        levels = self.levels(self.train_steps)
        return np.stack([levels.t, levels.alpha[:-1], levels.sigma[:-1]])

    def network_time(self, t: Tensor) -> Tensor:
        """``t`` as the network takes it: whole numbers where the schedule is discrete."""
        return t.round().long() if self.discrete else t

    def snap(self, t: Tensor) -> Tensor:
        """Times drawn uniformly from [0, T), reduced to those that the network knows."""
        return t.floor() if self.discrete else t

    def _check_steps(self, steps: int) -> None:
        if not 1 <= steps <= self.train_steps:
            raise InputError(
                f"trajectories.steps = {steps}: expected 1 to {self.train_steps}, the teacher's "
                "own number"
            )


class VariancePreserving(NoiseSchedule):
    """alpha^2 + sigma^2 = 1 at T whole times; ``alphas_cumprod``: (T,) float64, decreasing."""

    discrete = True

    def __init__(self, alphas_cumprod: np.ndarray):
        super().__init__(len(alphas_cumprod))
        self.alphas_cumprod = np.asarray(alphas_cumprod, dtype=np.float64)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        squared = torch.as_tensor(self.alphas_cumprod, device=t.device)[t.round().long()]
        return squared.sqrt().float(), (1.0 - squared).sqrt().float()

    def levels(self, steps: int) -> Levels:
        """Times spaced as diffusers' ``trailing``: the first step sees pure noise."""
        self._check_steps(steps)
        down = np.arange(self.train_steps, 0, -self.train_steps / steps)[:steps]
        t = np.round(down).astype(np.int64) - 1
        squared = np.append(self.alphas_cumprod[t], 1.0)
        return Levels(t=t.astype(np.float64), alpha=np.sqrt(squared), sigma=np.sqrt(1.0 - squared))

    def time_of_snr(self, snr: float) -> float:
        if snr == 0:
            return float(self.train_steps - 1)
        alpha, sigma = (
            v.double().numpy() for v in self.alpha_sigma(torch.arange(self.train_steps))
        )
        # nearest in log(sigma / alpha)
        with np.errstate(divide="ignore"):
            distance = np.abs(np.log(sigma / alpha) + 0.5 * np.log(snr))
        return float(distance.argmin())


class FlowMatching(NoiseSchedule):
    """Rectified flow, x = (1 - sigma) x0 + sigma eps with sigma = t / T.

    ``shift``: the chain's levels are ``shift s / (1 + (shift - 1) s)`` for s evenly spaced (SD3).
    """

    discrete = False

    def __init__(self, train_steps: int, shift: float = 1.0):
        super().__init__(train_steps)
        self.shift = float(shift)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = t.to(torch.float32) / self.train_steps
        return 1.0 - sigma, sigma

    def level(self, t: float) -> tuple[float, float]:
        sigma = t / self.train_steps
        return 1.0 - sigma, sigma

    def levels(self, steps: int) -> Levels:
        self._check_steps(steps)
        sigma = np.linspace(1.0, 0.0, steps + 1)
        sigma = self.shift * sigma / (1.0 + (self.shift - 1.0) * sigma)
        return Levels(t=sigma[:-1] * self.train_steps, alpha=1.0 - sigma, sigma=sigma)

    def time_of_snr(self, snr: float) -> float:
        return self.train_steps / (1.0 + float(np.sqrt(snr)))


def read_schedule(
    scheduler: Any, tokens: int | None = None
) -> tuple[NoiseSchedule, str, float | None]:
    """(schedule, prediction type, bound on x0) of a diffusers scheduler.

    ``tokens``: of one state, where the network has them; a shift may depend on it. Raises
    InputError for a scheduler that is no teacher's, and for options that are not supported
    (models/teachers/scheduler_options.py).
    """
    options, name = scheduler_options(scheduler, tokens), type(scheduler).__name__
    steps = int(options["num_train_timesteps"])
    if steps < 1:
        raise InputError(f"teacher {name}: num_train_timesteps = {steps}: expected 1 or more")
    if name in EDM:
        raise InputError(f"teacher scheduler {name}: preconditioned networks are not supported")
    if name in FLOW_MATCHING:
        return FlowMatching(steps, _shift(options, tokens)), "flow", None
    prediction = options["prediction_type"]
    if options.get("use_flow_sigmas") or prediction == "flow_prediction":
        if not (options.get("use_flow_sigmas") and prediction == "flow_prediction"):
            raise InputError(
                f"teacher {name}: prediction_type {prediction!r} with use_flow_sigmas = "
                f"{options.get('use_flow_sigmas')}: expected flow_prediction and true together"
            )
        return FlowMatching(steps, options["flow_shift"]), "flow", None
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise InputError(
            f"teacher scheduler {name} with prediction_type {prediction!r}: expected epsilon, "
            "v_prediction or sample"
        )
    if prediction == "epsilon" and options.get("rescale_betas_zero_snr"):
        raise InputError(
            f"teacher {name}: rescale_betas_zero_snr with prediction_type epsilon: at zero "
            "signal-to-noise ratio the noise says nothing about the image; expected v_prediction "
            "or sample, or rescale_betas_zero_snr: false"
        )
    schedule = VariancePreserving(_alphas_cumprod(scheduler, steps))
    clip = float(options["clip_sample_range"]) if options.get("clip_sample", False) else None
    if clip is not None and not clip > 0:
        raise InputError(
            f"teacher {name}: clip_sample_range = {clip:g}: expected a number above 0, or "
            "clip_sample: false"
        )
    return schedule, prediction, clip


def _shift(options: dict[str, Any], tokens: int | None) -> float:
    """The shift of a flow; with ``use_dynamic_shifting`` log shift, or the shift itself, grows
    linearly with the number of tokens (Esser et al. 2024, arXiv 2403.03206, section 5.3.2).
    """
    if tokens is None or not options.get("use_dynamic_shifting"):
        return float(options["shift"])
    few, many = options["base_image_seq_len"], options["max_image_seq_len"]
    slope = (options["max_shift"] - options["base_shift"]) / (many - few)
    grown = options["base_shift"] + slope * (tokens - few)
    return float(grown if options["time_shift_type"] == "linear" else np.exp(grown))


def _alphas_cumprod(scheduler: Any, steps: int) -> np.ndarray:
    """(T,) float64; InputError unless they are T decreasing numbers in [0, 1]."""
    found = np.array(scheduler.alphas_cumprod.double())
    if scheduler.config.get("rescale_betas_zero_snr"):
        found[-1] = 0.0  # Euler, DPM-Solver and UniPC keep 2^-24 there, above the one before
    if len(found) != steps:
        raise InputError(
            f"teacher {type(scheduler).__name__}: trained_betas has {len(found)} entries, "
            f"num_train_timesteps is {steps}: expected as many"
        )
    if not (
        np.isfinite(found).all() and (np.diff(found) < 0).all() and found[0] < 1 and found[-1] >= 0
    ):
        raise InputError(
            f"teacher {type(scheduler).__name__}: betas that do not add noise at every time; "
            "expected each in (0, 1)"
        )
    if found[-1] == 0 and scheduler.config.get("prediction_type", "epsilon") == "epsilon":
        raise InputError(
            f"teacher {type(scheduler).__name__}: the last beta is 1 (zero signal-to-noise ratio) "
            "with prediction_type epsilon; expected v_prediction or sample"
        )
    return found
