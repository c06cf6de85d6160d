"""Noise schedules of the forward process ``x_t = alpha_t x0 + sigma_t eps``.

variance preserving:  alpha_t^2 = alphas_cumprod[t],  sigma_t^2 = 1 - alpha_t^2
flow matching:        alpha = 1 - t / T,  sigma = t / T
EDM:                  x = x0 + s eps, scaled as the network sees it; t = log(s) / 4
variance exploding:   x = x0 + s eps, scaled by 1 / sqrt(1 + s^2); t = s
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.common.errors import InputError


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
    """alpha and sigma as functions of the network's time, t in [0, ``train_steps``), but for EDM
    and variance exploding.

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

    def reach(self, place: Any, part: float = 1.0) -> Any:
        """The time at ``place``, 0 to 1 or a tensor of it, of the lower ``part`` of all times."""
        return place * (part * self.train_steps)

    def snap(self, t: Tensor) -> Tensor:
        """Times drawn uniformly from those in reach, reduced to those that the network knows."""
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


class Preconditioned(NoiseSchedule):
    """EDM (Karras et al. 2022, arXiv 2206.00364): x = x0 + s eps with s from ``sigma_max`` down to
    ``sigma_min``, the network's input scaled by 1 / sqrt(s^2 + d^2), d = ``sigma_data``.

    That input is the state here, so that alpha^2 + sigma^2 = 1 over data x0 / d:

        alpha = d / sqrt(s^2 + d^2),   sigma = s / sqrt(s^2 + d^2),   t = log(s) / 4

    The chain is spaced by their equation 5 with exponent ``rho``, evenly in log s for None.
    """

    discrete = False

    def __init__(
        self, train_steps: int, sigma_min: float, sigma_max: float, sigma_data: float,
        rho: float | None = 7.0,
    ):  # fmt: skip
        super().__init__(train_steps)
        self.low, self.high, self.data, self.rho = sigma_min, sigma_max, sigma_data, rho

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        ratio = torch.exp(4.0 * t.double()) / self.data
        alpha = (1.0 + ratio**2).rsqrt()
        return alpha.float(), (ratio * alpha).float()

    def level(self, t: float) -> tuple[float, float]:
        ratio = float(np.exp(4.0 * t)) / self.data
        alpha = 1.0 / float(np.hypot(1.0, ratio))
        return alpha, ratio * alpha

    def levels(self, steps: int) -> Levels:
        self._check_steps(steps)
        ramp = np.linspace(0.0, 1.0, steps)
        if self.rho is None:
            s = self.high * (self.low / self.high) ** ramp
        else:
            ends = self.high ** (1 / self.rho), self.low ** (1 / self.rho)
            s = (ends[0] + ramp * (ends[1] - ends[0])) ** self.rho
        alpha = self.data / np.hypot(s, self.data)
        sigma = s / np.hypot(s, self.data)
        return Levels(np.log(s) / 4, np.append(alpha, 1.0), np.append(sigma, 0.0))

    def time_of_snr(self, snr: float) -> float:
        s = self.high if snr == 0 else min(max(self.data / np.sqrt(snr), self.low), self.high)
        return float(np.log(s) / 4)

    def reach(self, place: Any, part: float = 1.0) -> Any:
        """Evenly in log s."""
        low, high = np.log(self.low) / 4, np.log(self.high) / 4
        return float(low) + place * float(part * (high - low))


class VarianceExploding(NoiseSchedule):
    """Score SDE (Song et al. 2021, arXiv 2011.13456, appendix C): x = x0 + s eps, the network asked
    at time s, with s from ``sigma_max`` down to ``sigma_min``. The state here is x / sqrt(1 + s^2):

        alpha = 1 / sqrt(1 + s^2),   sigma = s / sqrt(1 + s^2)

    The chain is spaced evenly in log s, K levels at u from 1 to ``end``, s = low (high / low)^u.
    """

    discrete = False

    def __init__(self, train_steps: int, sigma_min: float, sigma_max: float, end: float = 0.0):
        super().__init__(train_steps)
        self.low, self.high, self.end = sigma_min, sigma_max, end

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        s = t.double()
        alpha = (1.0 + s**2).rsqrt()
        return alpha.float(), (s * alpha).float()

    def level(self, t: float) -> tuple[float, float]:
        alpha = 1.0 / float(np.hypot(1.0, t))
        return alpha, t * alpha

    def levels(self, steps: int) -> Levels:
        self._check_steps(steps)
        s = self.low * (self.high / self.low) ** np.linspace(1.0, self.end, steps)
        alpha = 1.0 / np.hypot(s, 1.0)
        return Levels(s, np.append(alpha, 1.0), np.append(s * alpha, 0.0))

    def time_of_snr(self, snr: float) -> float:
        s = self.high if snr == 0 else 1.0 / np.sqrt(snr)
        return float(min(max(s, self.low), self.high))

    def reach(self, place: Any, part: float = 1.0) -> Any:
        """Evenly in log s."""
        return self.low * (self.high / self.low) ** (place * part)
