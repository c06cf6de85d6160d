"""A teacher with an exact score: a Gaussian mixture.

For data sum_j w_j N(mu_j, tau^2 I) the posterior mean E[x0 | x_t = x] has a closed form, and so has
its Jacobian. Chains, signatures and convergence orders are tested against it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.teachers.schedule import Levels


class GaussianMixture:
    """``means`` (J, d), ``weights`` (J,) summing to 1, common standard deviation ``tau`` > 0.
    float64 throughout.
    """

    def __init__(self, means: Tensor, weights: Tensor, tau: float):
        self.means, self.weights, self.tau = means.double(), weights.double(), float(tau)

    def denoise(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x0 | x_t = x]: (n, d) -> (n, d)."""
        responsibilities, gain = self._posterior(x, alpha, sigma)
        mean = responsibilities @ self.means
        return mean + gain * (x - alpha * mean)

    def jacobian(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """d denoise / d x: (n, d) -> (n, d, d)."""
        responsibilities, gain = self._posterior(x, alpha, sigma)
        mean = responsibilities @ self.means
        spread = torch.einsum(
            "nj,ja,jb->nab", responsibilities, self.means, self.means
        ) - torch.einsum("na,nb->nab", mean, mean)
        total = alpha**2 * self.tau**2 + sigma**2
        eye = torch.eye(x.shape[1], dtype=torch.float64)
        return gain * eye + (1 - gain * alpha) * (alpha / total) * spread

    def _posterior(self, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, float]:
        total = alpha**2 * self.tau**2 + sigma**2
        distance = (x[:, None] - alpha * self.means).square().sum(-1)
        return torch.softmax(
            self.weights.log() - distance / (2 * total), 1
        ), alpha * self.tau**2 / total

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, d) draws of the data."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[which] + self.tau * noise


def snr_levels(start: float, stop: float, steps: int) -> Levels:
    """VP levels whose SNR rises linearly from ``start`` to ``stop``, ``steps`` steps; they do not
    reach clean data.

    In p = alpha x / sigma^2 the reverse process with eta = 1 is then dp = E[x0 | p] dLambda + dW
    with Lambda = SNR.
    """
    snr = np.linspace(start, stop, steps + 1)
    alpha = np.sqrt(snr / (1 + snr))
    return Levels(t=np.arange(steps, dtype=np.float64), alpha=alpha, sigma=np.sqrt(1 - alpha**2))
