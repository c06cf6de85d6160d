"""The untrained Sig-DEG student: its plans on the cached grid, and the pipeline around a copy of
the teacher's network. Equations: models/methods/sigdeg/method.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.common.errors import InputError
from models.methods.scoring import check_patches
from models.methods.sigdeg.config import SigDEGConfig
from models.methods.sigdeg.integrator import make_plan
from models.methods.sigdeg.pipeline import SigDEGPipeline, Step, rollout, steps_as_dicts
from models.methods.sigdeg.scales import at_scales
from models.methods.student_network import student_network
from models.sampling.grids import places, subgrid
from models.sampling.signature import bases, join_maps, joined
from models.sampling.trajectories import PathSpec
from models.schedulers.sigdeg_scheduler import SigDEGScheduler
from models.teachers.base import Denoiser, denoised_noise
from models.teachers.conditioning import Condition

MEAN_OF = 256  # samples of the mean image


@dataclass(frozen=True)
class SamplerGains:
    """Free numbers of one schedule, see :func:`models.methods.sigdeg.integrator.make_plan`."""

    look_ahead: float
    gain: float = 1.0
    last_gain: float = 0.0
    noise_gain: float = 1.0


Gains = Mapping[int, SamplerGains]


def calibrated_gains(diagnostics: Mapping[str, Any]) -> dict[int, SamplerGains]:
    """What calibration chose, by number of steps; empty where there was none."""
    chosen = diagnostics.get("gains_by_nfe", {})
    return {int(nfe): SamplerGains(**numbers) for nfe, numbers in chosen.items()}


def gains_for(nfe: int, config: SigDEGConfig, gains: Gains) -> SamplerGains:
    """The gains of ``nfe`` steps: the calibrated ones, or the plain ones where nothing was
    calibrated.

    Calibrated gains make up for what coarse steps lose and do not shrink with the step: another
    number of steps would not come nearer to the teacher with them. So they hold for the numbers
    of steps that they were chosen for; InputError for others.
    """
    if not gains:
        return SamplerGains(config.look_ahead)
    if nfe not in gains:
        raise InputError(
            f"{nfe} steps: the gains were calibrated for {sorted(gains)} steps only; add {nfe} to "
            "method.nfe, or set method.calibrate to false"
        )
    return gains[nfe]


@dataclass(frozen=True)
class StepSchedule:
    """One number of steps: its plan, where the steps begin and end among the cached states,
    (N + 1,), Chen's maps from the cached intervals, and the weights (N,) of the path error.
    """

    steps: list[Step]
    places: Tensor
    joins: Tensor
    weights: Tensor

    def states(self, Y: Tensor) -> Tensor:
        """The cached states (n, intervals + 1, C, H, W) where steps begin and end: (n, N + 1, C, H,
        W).
        """
        return Y[:, self.places.to(Y.device)]

    def features(self, xi: Tensor) -> Tensor:
        """xi of the cache (n, intervals, m + 1, C, H, W) joined to (n, N, m + 1, C, H, W)."""
        return joined(xi, self.joins)

    def with_noise(self, xi: Tensor, generator: torch.Generator) -> Tensor:
        """Joined features, and a fresh e after them where the plan has it: (n, N, m + 2, C, H, W).
        Draws nothing where it has not.
        """
        missing = len(self.steps[0].n) - xi.shape[2]
        if not missing:
            return xi
        shape = (*xi.shape[:2], missing, *xi.shape[3:])
        e = torch.randn(shape, generator=generator, device=xi.device, dtype=xi.dtype)
        return torch.cat([xi, e], 2)


def coarse_steps(spec: PathSpec, nfe: int, config: SigDEGConfig, gains: SamplerGains) -> list[Step]:
    """The plan of ``nfe`` steps on the cached grid with these free numbers; with e among the
    normals where the score is trained. With ``config.inputs`` width the steps' noise is the same,
    and the network sees zeros in the place of the signature.
    """
    depth = spec.parts[0].Q.shape[1] - 1
    parts = bases(spec.chain, subgrid(spec.grid, nfe), depth)
    ahead = [gains.look_ahead] * nfe
    if config.inputs == "none":
        ahead[0] = 0.0  # a stock pipeline asks at the start noise itself
    steps = make_plan(
        spec.chain,
        parts,
        config.order,
        ahead,
        config.predict_order,
        gains.gain,
        gains.last_gain,
        gains.noise_gain,
    )
    if config.inputs == "width":
        steps = [replace(step, kept=(0.0,) * len(step.kept)) for step in steps]
    if not config.loss.score:
        return steps
    without = nfe - 1 if config.loss.score_noise == "inner" and nfe > 1 else nfe
    return [with_noise_input(step, given=i != without) for i, step in enumerate(steps)]


def with_noise_input(step: Step, given: bool = True) -> Step:
    """The step with one more standard normal, e, after the features: an input of the network that
    moves neither the query state nor the step's noise; zero there unless ``given``.
    """
    return replace(step, m=(*step.m, 0.0), n=(*step.n, 0.0), kept=(*step.kept, float(given)))


def make_step_schedule(
    spec: PathSpec,
    nfe: int,
    config: SigDEGConfig,
    gains: SamplerGains | None = None,
    data_std: float = 0.5,
    teacher: Denoiser | None = None,
) -> StepSchedule:
    """Everything about ``nfe`` steps that follows from the cached grid; ``gains`` None: the plain
    ones; ``data_std``: s of (8); ``teacher``: needed where steps have smaller sizes. Raises
    InputError if the grid has fewer intervals than nfe.
    """
    grid = subgrid(spec.grid, nfe)
    steps = coarse_steps(spec, nfe, config, gains or SamplerGains(config.look_ahead))
    if config.scales.pairs:
        assert teacher is not None, "sizes are the teacher's"
        steps = at_scales(steps, spec, config, teacher)
    alpha, sigma = spec.chain.levels.alpha[grid[1:]], spec.chain.levels.sigma[grid[1:]]
    weights = {
        "marginal": 1.0 / (alpha**2 * data_std**2 + sigma**2),
        "uniform": np.ones(nfe),
        "final": np.append(np.zeros(nfe - 1), float(nfe)),
    }[config.loss.weighting]
    return StepSchedule(
        steps,
        torch.as_tensor(places(len(spec.parts), nfe)),
        torch.as_tensor(join_maps(spec.chain, spec.parts, nfe)),
        torch.as_tensor(weights, dtype=torch.float32),
    )


def plans_of(
    teacher: Denoiser, spec: PathSpec, config: SigDEGConfig, gains: Gains | None = None
) -> dict[int, list[Step]]:
    """The plans of all numbers of steps, at their sizes."""
    chosen = {n: gains_for(n, config, gains or {}) for n in config.nfe}
    return {
        n: at_scales(coarse_steps(spec, n, config, chosen[n]), spec, config, teacher)
        for n in config.nfe
    }


@torch.no_grad()
def mean_image(teacher: Denoiser, t: float, n: int = MEAN_OF) -> Tensor:
    """The teacher's mean image (C, H, W): what it sees in pure noise, averaged; classes in
    turn where it has them.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((n, *teacher.shape), generator=generator)
    return denoised_noise(teacher, noise, t).mean(0)


def build_pipeline(
    teacher: Denoiser, spec: PathSpec, config: SigDEGConfig, gains: Gains | None = None
) -> SigDEGPipeline:
    """The untrained student as a pipeline around a copy of the teacher's network; ``gains``: those
    that calibration chose.
    """
    plain_plans = plans_of(teacher, spec, config)
    plans = plans_of(teacher, spec, config, gains)
    if config.loss.score:
        factors = {step.reduction for steps in plans.values() for step in steps}
        for factor in factors:
            space = (side // factor for side in teacher.shape[1:])
            check_patches(config.loss.score_patches, (teacher.shape[0], *space))
    channels = input_channels(config, teacher.shape[0], len(plans[config.nfe[0]][0].n))
    scheduler_config = None
    if config.inputs == "none":
        if damps(teacher, config, plans, plain_plans):
            raise InputError(
                "method.inputs = none: a network alone cannot damp its errors at high noise; set "
                "method.conditioning_limit to null"
            )
        # else there is no stock pipeline to put it into
        stock = teacher.scheduler is not None and teacher.prediction_type != "ve"
        if stock and not config.scales.pairs:
            scheduler_config = dict(student_scheduler(teacher, spec, config, gains or {}).config)
    frozen = teacher.network if damps(teacher, config, plans, plain_plans) else None
    mean = mean_image(teacher, float(spec.chain.levels.t[0]))
    return SigDEGPipeline(
        unet=student_network(teacher, channels, config.trainable, config.lora_rank),
        plans=steps_as_dicts(plans),
        plain_plans=None if plain_plans == plans else steps_as_dicts(plain_plans),
        prediction_type=teacher.prediction_type,
        shape=list(teacher.shape),
        mean_image=mean.mul(1e4).round().div(1e4).tolist(),
        memory=config.memory,
        clip=teacher.clip,
        conditioning_limit=config.conditioning_limit if frozen is not None else None,
        num_classes=teacher.num_classes,
        inputs=config.inputs,
        scheduler_config=scheduler_config,
        scaling=teacher.codec.scaling,
        vae=teacher.codec.vae,
        frozen=frozen,
    )


def input_channels(config: SigDEGConfig, channels: int, normals: int) -> int:
    """Of the student's network, for states of ``channels``: X, the normals, the previous output
    where it is an input, the width of the step; or X alone.
    """
    if config.inputs == "none":
        return channels
    return channels * (1 + normals + int(config.memory)) + 1


def window_length(config: SigDEGConfig, total_steps: int, step: int, nfe: int) -> int:
    """Length of the training windows at a step: from ``window.start``, linearly, to the whole
    path.
    """
    until = config.window.grow_until * total_steps
    grown = 1.0 if until <= 0 else min(1.0, step / until)
    start = min(config.window.start, nfe)
    return round(start + grown * (nfe - start))


def history_length(config: SigDEGConfig) -> int:
    """How many earlier outputs a step may need."""
    return max(config.order - 1, config.predict_order, int(config.memory))


def student_scheduler(
    teacher: Denoiser, spec: PathSpec, config: SigDEGConfig, gains: Gains
) -> SigDEGScheduler:
    """The scheduler that samples a student without extra inputs as its own pipeline does."""
    settings = {str(n): asdict(gains_for(n, config, gains)) for n in config.nfe}
    scheduler: SigDEGScheduler = SigDEGScheduler.from_config(
        teacher.scheduler.config,
        chain_steps=spec.chain.steps,
        eta=float(spec.chain.eta),
        signature_depth=spec.parts[0].Q.shape[1] - 1,
        solver_order=config.order,
        predict_order=config.predict_order,
        look_ahead=config.look_ahead,
        by_steps=settings,
        coarse_grid="given",
        points=spec.grid.tolist(),
    )
    return scheduler


def damps(teacher: Denoiser, config: SigDEGConfig, *plans: Mapping[int, Sequence[Step]]) -> bool:
    """Whether some step amplifies an epsilon network's errors beyond the limit."""
    limit = config.conditioning_limit
    if not teacher.predicts_noise or limit is None:
        return False
    steps = (step for plan in plans for steps in plan.values() for step in steps)
    return any(step.sigma > limit * step.alpha for step in steps)


def untrained_rollout(
    teacher: Denoiser,
    step_schedule: StepSchedule,
    Y: Tensor,
    xi: Tensor,
    condition: Condition | None = None,
) -> Tensor:
    """States (n, N + 1, C, H, W) of the generator with the teacher's own network; a second way to
    the untrained student.
    """
    mean = mean_image(teacher, float(teacher.schedule.levels(1).t[0])).to(Y)

    def denoise(step: Step, X: Tensor, z: Tensor, history: Sequence[Tensor]) -> Tensor:
        return step.reduction * teacher.denoise(step.scale * X, step.t, condition)

    return rollout(denoise, step_schedule.steps, Y, xi, mean)
