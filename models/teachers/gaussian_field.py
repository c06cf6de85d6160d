"""A teacher with an exact law at every size: a stationary Gaussian field on a torus.

Its posterior mean E[x0 | x_t] is a Wiener filter, and its means over blocks are a field of the same
kind. So what a sampler makes of it is Gaussian too, and its covariance can be written down: scale-
wise students are tested against it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.teachers.base import Denoiser
from models.teachers.conditioning import Condition
from models.teachers.schedule import FlowMatching

TIMES = 1000


class GaussianField:
    """``power``: (S, S) float64 > 0, the variances of the orthonormal Fourier coefficients, even in
    the frequency; their mean is the variance of a pixel.
    """

    def __init__(self, power: np.ndarray):
        self.power = np.asarray(power, dtype=np.float64)

    @property
    def size(self) -> int:
        return len(self.power)

    def covariance(self) -> Tensor:
        """(S S, S S) float64, pixels row by row."""
        of_offset = np.fft.ifft2(self.power).real
        y, x = np.divmod(np.arange(self.size**2), self.size)
        offsets = (y[:, None] - y) % self.size, (x[:, None] - x) % self.size
        return torch.from_numpy(of_offset[offsets])

    def means(self, factor: int) -> GaussianField:
        """The field of means over blocks of ``factor`` x ``factor`` pixels."""
        of_offset = np.fft.ifft2(self.power).real
        moved = [
            np.roll(of_offset, (a - b, c - d), (0, 1))
            for a, b, c, d in np.ndindex(*[factor] * 4)  # places in two blocks
        ]
        kept = np.mean(moved, 0)[::factor, ::factor]
        return GaussianField(np.fft.fft2(kept).real)

    def denoise(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x0 | x_t = x]: (..., S, S) -> (..., S, S)."""
        power = torch.from_numpy(self.power[:, : self.size // 2 + 1])
        gain = alpha * power / (alpha**2 * power + sigma**2)
        seen = torch.fft.rfft2(x.double())
        return torch.fft.irfft2(gain * seen, s=(self.size, self.size)).to(x.dtype)


def power_law(size: int, exponent: float = 2.5, variance: float = 0.25) -> GaussianField:
    """P(f) = c (1 + f^2)^(-exponent / 2), f in cycles per image; photographs have 2 to 3."""
    frequency = np.fft.fftfreq(size, 1 / size)
    power = (1 + frequency[:, None] ** 2 + frequency**2) ** (-exponent / 2)
    return GaussianField(variance * power / power.mean())


class FieldNetwork(nn.Module):
    """The flow prediction v = (x - E[x0 | x]) / sigma at any size that divides the field's."""

    def __init__(self, field: GaussianField):
        super().__init__()
        size = field.size
        self.fields = {size // f: field.means(f) for f in range(1, size + 1) if size % f == 0}
        self.unused = nn.Parameter(torch.zeros(()))  # says where the network is

    def forward(self, x: Tensor, t: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        sigma = float(t[0]) / TIMES
        return ((x - self.fields[x.shape[-1]].denoise(x, 1 - sigma, sigma)) / sigma,)


class FieldTeacher(Denoiser):
    """Flow matching over a field's pixels, (1, S, S)."""

    def __init__(self, field: GaussianField):
        shape = (1, field.size, field.size)
        super().__init__(
            FieldNetwork(field), FlowMatching(TIMES), shape=shape, prediction_type="flow"
        )

    def expand_input(self, network: Any, channels: int) -> None:
        if channels != 1:
            super().expand_input(network, channels)

    def call_network(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        output: Tensor = self.network(x, t)[0]
        return output
