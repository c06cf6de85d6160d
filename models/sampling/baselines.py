"""Training-free samplers on a teacher, each with exactly `nfe` network calls.

Every sampler gets its better settings at few steps: the first call sees pure noise, a last step
goes to clean data, lower order in the last steps. Time grids: `trailing` (even in time), `logsnr`
(even in log-SNR, Lu et al. 2022), `karras` (Karras et al. 2022, rho = 7), or given ratios sigma /
alpha. Grids consist of times that the teacher knows, so that the level of a step is exactly that of
the network's time. The solvers (models/sampling/solvers.py) ask the teacher for denoised images:
they clip as the teacher clips, and take every prediction type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.common.errors import InputError
from models.sampling import solvers
from models.teachers.conditioning import Condition
from models.teachers.guidance import Guidance
from models.teachers.schedule import FlowMatching, Levels, NoiseSchedule

SPACINGS = ("trailing", "logsnr", "karras")
KARRAS_RHO = 7.0


class Predictor(Protocol):
    """What a teacher has to offer here (models.teachers.base.Denoiser does)."""

    schedule: NoiseSchedule

    def denoise(
        self,
        x: Tensor,
        t: Tensor | float,
        condition: Condition | None = None,
        guidance: Guidance = 1.0,
    ) -> Tensor: ...


@dataclass(frozen=True)
class Solver:
    """``solve(denoise, levels, x, noise)``; ``two_calls``: a step asks twice, the last one once."""

    title: str
    solve: Callable[..., Tensor]
    two_calls: bool = False
    spacings: tuple[str, ...] = SPACINGS
    flow: bool = True


SOLVERS: dict[str, Solver] = {
    "ddim": Solver("DDIM", partial(solvers.ancestral, eta=0.0), spacings=SPACINGS[:1]),
    "ddpm": Solver("DDPM", partial(solvers.ancestral, eta=1.0), spacings=SPACINGS[:1], flow=False),
    "dpmpp_2m": Solver("DPM-Solver++(2M)", partial(solvers.dpmpp, order=2)),
    "sde_dpmpp_2m": Solver(
        "SDE-DPM-Solver++(2M)", partial(solvers.dpmpp, order=2, stochastic=True)
    ),
    "unipc": Solver("UniPC", solvers.unipc),
    "dpmpp_3m": Solver("DPM-Solver++(3M)", partial(solvers.dpmpp, order=3)),
    "deis": Solver("DEIS", partial(solvers.deis, order=3)),
    "ipndm": Solver("iPNDM-4", partial(solvers.ipndm, order=4)),
    "ipndm3": Solver("iPNDM-3", partial(solvers.ipndm, order=3)),
    "ipndm2": Solver("iPNDM-2", partial(solvers.ipndm, order=2)),
    "heun": Solver("Heun", solvers.heun, two_calls=True),
    "sde_heun": Solver("SDE-Heun", solvers.sde_heun, two_calls=True),
}
BASELINES = tuple(SOLVERS)


def split_name(name: str) -> tuple[str, str]:
    """`unipc_logsnr` -> (`unipc`, `logsnr`); a plain name has trailing spacing."""
    for spacing in SPACINGS[1:]:
        if name.endswith(f"_{spacing}"):
            return name.removesuffix(f"_{spacing}"), spacing
    return name, "trailing"


def title(name: str) -> str:
    """The name shown to people."""
    sampler, spacing = split_name(name)
    shown = SOLVERS[sampler].title if sampler in SOLVERS else sampler
    return shown + ("" if spacing == "trailing" else f" {spacing}")


def why_not(teacher: Predictor, name: str) -> str | None:
    """The reason why a sampler does not apply to a teacher, None if it does.

    InputError for a sampler that does not exist.
    """
    sampler, spacing = split_name(name)
    if sampler not in SOLVERS:
        raise InputError(
            f"sampler {name}: expected one of {', '.join(BASELINES)}, plain or with _logsnr or "
            "_karras"
        )
    solver = SOLVERS[sampler]
    if spacing not in solver.spacings:
        return f"only the multistep solvers have other spacings; use {sampler}"
    if isinstance(teacher.schedule, FlowMatching):
        if not solver.flow:
            return "not defined for flow matching; use ddim (Euler), dpmpp_2m or unipc"
        if spacing != "trailing":
            return "flow matching starts at an infinite ratio sigma / alpha; use trailing spacing"
    return None


def check(teacher: Predictor, name: str) -> Solver:
    """The solver of a name; InputError with the reason where it does not apply."""
    if (reason := why_not(teacher, name)) is not None:
        raise InputError(f"sampler {name}: {reason}")
    return SOLVERS[split_name(name)[0]]


def variants(teacher: Predictor, name: str) -> list[str]:
    """A sampler's names in all the spacings that apply to this teacher; [] if the sampler does
    not (:func:`why_not` says why).
    """
    if why_not(teacher, name) is not None:
        return []
    sampler, spacing = split_name(name)
    if spacing != "trailing":
        return [name]
    others = [f"{sampler}_{spacing}" for spacing in SOLVERS[sampler].spacings[1:]]
    return [name, *(other for other in others if why_not(teacher, other) is None)]


def sampling_levels(
    schedule: NoiseSchedule,
    steps: int,
    spacing: str = "trailing",
    ratios: Sequence[float] | None = None,
) -> Levels:
    """``steps`` noise levels and clean data, all at times that the network knows.

    ``ratios``: given sigma / alpha, falling, ``inf`` for pure noise. Raises InputError where
    they are not ``steps`` distinct levels of the schedule.
    """
    if ratios is None and spacing == "trailing":
        return schedule.levels(steps)
    if ratios is None:
        ratios = _spaced_ratios(schedule, steps, spacing)
        times = _distinct([_time(schedule, ratio) for ratio in ratios], schedule)
    else:
        times = [_time(schedule, ratio) for ratio in ratios]
    if len(times) != steps or any(b >= a for a, b in pairwise(times)):
        raise InputError(
            f"sigma / alpha {[float(f'{r:.4g}') for r in ratios]}: expected {steps} falling "
            "numbers, each at another of the teacher's times"
        )
    alpha, sigma = np.array([schedule.level(t) for t in times]).T
    return Levels(np.array(times), np.append(alpha, 1.0), np.append(sigma, 0.0))


def _time(schedule: NoiseSchedule, ratio: float) -> float:
    return schedule.time_of_snr(0.0 if np.isinf(ratio) else 1.0 / ratio**2)


def _spaced_ratios(schedule: NoiseSchedule, steps: int, spacing: str) -> list[float]:
    """sigma / alpha from the noisiest finite level to the cleanest."""
    all_levels = schedule.levels(schedule.train_steps)
    with np.errstate(divide="ignore"):
        known = all_levels.sigma[:-1] / all_levels.alpha[:-1]
    finite = known[np.isfinite(known)]
    high, low, ramp = finite[0], finite[-1], np.linspace(0.0, 1.0, steps)
    if spacing == "logsnr":
        found = high * (low / high) ** ramp
    else:
        root = 1 / KARRAS_RHO
        found = (high**root + ramp * (low**root - high**root)) ** KARRAS_RHO
    if np.isinf(known[0]):
        found[0] = np.inf  # zero terminal SNR: sampling starts at pure noise
    return [float(v) for v in found]


def _distinct(times: list[float], schedule: NoiseSchedule) -> list[float]:
    """Times moved apart, by as little as needed, where several are the same whole number."""
    if not schedule.discrete:
        return times
    for i in range(1, len(times)):
        times[i] = min(times[i], times[i - 1] - 1)
    for i in reversed(range(len(times))):
        times[i] = max(times[i], float(len(times) - 1 - i))
    return times


@torch.inference_mode()
def sample_baseline(
    teacher: Predictor,
    name: str,
    nfe: int,
    noise: Tensor,
    condition: Condition | None = None,
    guidance: Guidance = 1.0,
    generator: torch.Generator | None = None,
    ratios: Sequence[float] | None = None,
    **options: Any,
) -> Tensor:
    """Clean samples x0 (n, ...) from start noise (n, ...) ~ N(0, I), with exactly `nfe` calls.

    `generator` feeds the stochastic samplers; `ratios`: a given grid of sigma / alpha in the place
    of the name's; `options`: the solver's own (`factor` of sde_heun). InputError for an unknown
    sampler, or one that does not apply.
    """
    solver = check(teacher, name)
    if not 1 <= nfe <= teacher.schedule.train_steps:
        raise InputError(
            f"nfe = {nfe}: expected 1 to {teacher.schedule.train_steps}, the teacher's own number "
            "of steps"
        )
    steps = nfe
    if solver.two_calls:  # 2 steps - 1 calls; an even number is reached by one plain first step
        steps = nfe // 2 + 1
        options |= {"euler_first": nfe % 2 == 0}
    levels = sampling_levels(teacher.schedule, steps, split_name(name)[1], ratios)

    def denoise(x: Tensor, k: int) -> Tensor:
        return teacher.denoise(x, float(levels.t[k]), condition, guidance)

    def fresh() -> Tensor:
        where = noise.device if generator is None else generator.device
        drawn = torch.randn(noise.shape, generator=generator, device=where, dtype=noise.dtype)
        return drawn.to(noise.device)

    return solver.solve(denoise, levels, noise, fresh, **options).to(noise.dtype)
