"""Scale schedules of SwD (Starodubcev et al., arXiv 2503.16397): pairs of noise level and
resolution.

Levels are those of flow matching, x = (1 - sigma) x0 + sigma eps, whatever the teacher is; a
variance-preserving teacher is asked at the time of equal signal-to-noise ratio, sigma_t / alpha_t =
sigma / (1 - sigma). A step may run at size s when everything that s cannot hold is below the noise:
with P(f) the data's power at radial frequency f,

    (1 - sigma)^2 P(f) <= sigma^2    for all f > s / 2
          (10)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.common.errors import InputError
from models.sampling.chain import Chain
from models.teachers.base import Denoiser
from models.teachers.conditioning import Condition
from models.teachers.guidance import Guidance

SIGMAS = {4: (1.0, 0.8959, 0.7371, 0.6022), 6: (1.0, 0.9454, 0.8959, 0.7904, 0.7371, 0.6022)}
PARTS = {4: (64, 80, 96, 128), 6: (32, 48, 64, 80, 96, 128)}


class Scale(NamedTuple):
    """One step: ``sigma`` in (0, 1], ``size`` in pixels of the teacher's state space."""

    sigma: float
    size: int


Schedule = tuple[Scale, ...]


def make_schedule(pairs: Sequence[tuple[float, int]], full: int, stride: int) -> Schedule:
    """A checked schedule that ends at ``full``, sizes divisible by ``stride``; InputError says what
    is wrong.
    """
    schedule = tuple(Scale(float(sigma), int(size)) for sigma, size in pairs)
    if not schedule:
        raise InputError("method.schedule: no steps; expected pairs (sigma, size)")
    sigmas, sizes = [s.sigma for s in schedule], [s.size for s in schedule]
    if sigmas[0] != 1.0:
        raise InputError(f"method.schedule: first sigma is {sigmas[0]}; expected 1.0, pure noise")
    if any(b >= a for a, b in itertools.pairwise(sigmas)) or sigmas[-1] <= 0:
        raise InputError(f"method.schedule: sigmas {sigmas}; expected strictly decreasing, above 0")
    if any(b < a for a, b in itertools.pairwise(sizes)):
        raise InputError(
            f"method.schedule: sizes {sizes}; expected none smaller than the one before"
        )
    if sizes[-1] != full:
        raise InputError(
            f"method.schedule: last size is {sizes[-1]}; expected {full}, the teacher's own"
        )
    if bad := [size for size in sizes if size < 1 or size % stride]:
        raise InputError(
            f"method.schedule: size {bad[0]}; expected a multiple of {stride}, the network's stride"
        )
    return schedule


def preset(steps: int, full: int, stride: int, sigmas: Sequence[float] | None = None) -> Schedule:
    """The paper's schedule of 4 or 6 steps, its sizes scaled to ``full`` and rounded to the
    network's stride, halves down; ``sigmas``: other levels than the paper's, as many.
    """
    if steps not in SIGMAS:
        raise InputError(
            f"method.schedule.steps = {steps}: presets have {' or '.join(map(str, SIGMAS))}"
        )
    if sigmas is not None and len(sigmas) != steps:
        raise InputError(f"method.schedule.sigmas = {list(sigmas)}: expected {steps}, one a step")
    sizes = [
        max(stride, math.ceil(part * full / 128 / stride - 0.5) * stride) for part in PARTS[steps]
    ]
    return make_schedule(list(zip(sigmas or SIGMAS[steps], sizes, strict=True)), full, stride)


def scale_index(step: int, scales: int) -> int:
    """The scale of an optimizer step, the same for all its networks, micro-batches and workers.

    Every N steps take each scale once, in an order that rotates, so that figures logged every so
    many steps are not always those of the same scale.
    """
    return (step + step // scales) % scales


def alternating(counts: Mapping[str, int]) -> list[str]:
    """Each name as often as its count, the most frequent first, then in turn: a, a, b, a, b."""
    rounds = max(counts.values(), default=0)
    return [name for k in range(rounds) for name, count in counts.items() if k >= rounds - count]


def matched_levels(schedule: Schedule) -> Schedule:
    """Levels that hold at the last step's size, for each step's own size.

    Reduction by area from S to s pixels averages (S / s)^2 of them: independent noise becomes
    S / s times weaker, the image keeps its low frequencies. So sigma / (1 - sigma) of the small
    state is s / S times that of the large one it is the reduction of; pure noise stays.
    """
    full = schedule[-1].size
    found = []
    for sigma, size in schedule:
        noise = sigma * size / full  # in the unit of signal (1 - sigma)
        found.append(Scale(noise / (noise + 1.0 - sigma), size))
    sigmas = [scale.sigma for scale in found]
    if any(b >= a for a, b in itertools.pairwise(sigmas)):
        told = ", ".join(f"{sigma:.4g} at {size}" for sigma, size in found)
        raise InputError(
            f"method.level_mapping = matched: the levels become {told}; expected falling ones: "
            "let the sizes grow more slowly than sigma falls"
        )
    return tuple(found)


def radial_power(x0: Tensor) -> np.ndarray:
    """P(f), f = 0 .. S / sqrt 2 in cycles per image: mean |DFT|^2 (orthonormal) of x0 (n, C, S, S)
    by radius.

    White noise of variance 1 has P = 1 everywhere.
    """
    size = x0.shape[-1]
    power = torch.fft.fft2(x0.double(), norm="ortho").abs().square().mean((0, 1)).cpu().numpy()
    frequency = np.fft.fftfreq(size, 1 / size)
    radius = np.rint(np.hypot(frequency[:, None], frequency[None, :])).astype(int)
    return np.asarray(np.bincount(radius.ravel(), power.ravel()) / np.bincount(radius.ravel()))


def auto_schedule(
    power: np.ndarray, sigmas: Sequence[float], full: int, stride: int, smallest: int | None = None
) -> Schedule:
    """The smallest sizes that (10) allows for ``sigmas``, none below ``smallest`` (null: a quarter
    of ``full``).
    """
    smallest_allowed = full // 4 if smallest is None else smallest
    sizes = [size for size in range(stride, full + 1, stride) if size >= smallest_allowed]
    radii = np.arange(len(power))
    chosen = []
    for sigma in sigmas:
        hidden = power * (1 - sigma) ** 2 <= sigma**2
        chosen.append(next((s for s in sizes if hidden[radii > s / 2].all()), full))
    chosen = np.maximum.accumulate(chosen).tolist()
    chosen[-1] = full
    return make_schedule(list(zip(sigmas, chosen, strict=True)), full, stride)


def level_of(teacher: Denoiser, sigma: float) -> tuple[float, float, float]:
    """(t, alpha, sigma) of the teacher where its signal-to-noise ratio is that of flow matching at
    ``sigma``.
    """
    t = teacher.schedule.time_of_snr(((1.0 - sigma) / sigma) ** 2)
    return (t, *teacher.schedule.level(t))


@torch.no_grad()
def short_run(
    teacher: Denoiser,
    noise: Tensor,
    steps: int,
    condition: Condition | None = None,
    guidance: Guidance = 1.0,
) -> Tensor:
    """The teacher's own samples (n, C, s, s) at the size of ``noise``: ``steps`` deterministic
    steps (eta = 0).
    """
    chain, x = Chain(teacher.schedule.levels(steps), 0.0), noise
    for k in range(steps):
        x = float(chain.a[k]) * x + float(chain.b[k]) * teacher.denoise(
            x, float(chain.levels.t[k]), condition, guidance
        )
    return x
