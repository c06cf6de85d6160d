"""Sig-DEG: a signature-based differential-equation generator (arXiv 2508.16939), distilled from a
teacher's fine chain.

The generator takes N coarse steps, one network call each, fed with the partial signature xi_i of
the Brownian path of the step (models/sampling/signature.py); its step is (3), (6), (7) of
models/methods/sigdeg/pipeline.py. Before any training it is the exponential integrator of
models/methods/sigdeg/integrator.py. Training is pathwise: the same start noise and the same
Brownian path as a cached teacher trajectory,

    L = path * mean_i ||Y_i^student - Y_i^teacher||^2 / (alpha_i^2 s^2 + sigma_i^2)      s = 0.5,
    the data's std  (8)
        + mmd * MMD^2(phi(x0^student), phi(x0^teacher)) + features * ||phi(x0^student) -
        phi(x0^teacher)||^2  (9)

with phi the teacher's middle block on renoised images. Windows of L steps start at a teacher state
and grow to the whole path. Squared error alone ends at the conditional mean given the signature,
which is paler than the data; (9) restores it. Only the paper's abstract was at hand; the rest is
derived here (docs/methods.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.common.shapes import append_dims
from models.methods.base import Losses
from models.methods.losses import feature_loss, path_loss, rbf_mmd
from models.methods.sigdeg.integrator import make_plan
from models.methods.sigdeg.pipeline import (
    SigDEGPipeline,
    Step,
    next_state,
    path_average,
    query_state,
    rollout,
    steps_as_dicts,
)
from models.methods.student_network import student_network
from models.sampling.grids import subgrid
from models.sampling.signature import bases, chen_join
from models.sampling.trajectories import PathSpec
from models.teachers.base import Denoiser
from models.teachers.conditioning import Condition

DATA_STD = 0.5


@dataclass(frozen=True)
class SamplerGains:
    """Free numbers of one schedule, see :func:`models.methods.sigdeg.integrator.make_plan`."""

    look_ahead: float
    gain: float = 1.0
    last_gain: float = 0.0
    noise_gain: float = 1.0


@dataclass(frozen=True)
class SigDEGConfig:
    """Choices of the method. ``nfe``: numbers of steps that one student serves; other fields as in
    params.yaml.
    """

    nfe: tuple[int, ...] = (10, 5)
    order: int = 2
    look_ahead: float = 0.0
    predict_order: int = 2
    gains_by_nfe: tuple[tuple[int, SamplerGains], ...] = ()
    memory: bool = False
    conditioning_limit: float | None = 10.0
    window_start: int = 1
    window_until: float = 0.5
    weighting: str = "marginal"
    power: float = 2.0
    path: float = 1.0
    mmd: float = 0.0
    mmd_bandwidths: tuple[float, ...] = (0.5, 1.0, 2.0)
    features: float = 0.0
    trainable: str = "full"
    lora_rank: int = 16
    gradient_checkpointing: bool = False


class PathBatch(NamedTuple):
    """Cached paths: ``Y`` (n, N_cache + 1, C, H, W), ``xi`` (n, N_cache, m + 1, C, H, W),
    ``condition`` or None, ``step``; ``real``: clean training images (r, C, H, W) for the
    distribution term, or None for the teacher's own.
    """

    Y: Tensor
    xi: Tensor
    condition: Condition | None
    step: int
    real: Tensor | None = None


@dataclass(frozen=True)
class StepSchedule:
    """One number of steps: its plan, Chen's maps from the cached intervals (N, m + 1, r, m + 1),
    loss weights (N,).
    """

    steps: list[Step]
    joins: Tensor
    weights: Tensor
    every: int = field(default=1)

    def features(self, xi: Tensor) -> Tensor:
        """xi of the cache (n, N r, m + 1, C, H, W) joined to (n, N, m + 1, C, H, W)."""
        if self.every == 1:
            return xi
        parts = xi.reshape(len(xi), len(self.steps), self.every, *xi.shape[2:])
        return torch.einsum("iprq,nirqchw->nipchw", self.joins.to(xi), parts)


def coarse_steps(spec: PathSpec, nfe: int, config: SigDEGConfig, gains: SamplerGains) -> list[Step]:
    """The plan of ``nfe`` steps on the cached grid with these free numbers."""
    depth = spec.parts[0].Q.shape[1] - 1
    parts = bases(spec.chain, subgrid(spec.grid, nfe), depth)
    return make_plan(
        spec.chain,
        parts,
        config.order,
        gains.look_ahead,
        config.predict_order,
        gains.gain,
        gains.last_gain,
        gains.noise_gain,
    )


def make_step_schedule(spec: PathSpec, nfe: int, config: SigDEGConfig) -> StepSchedule:
    """Everything about ``nfe`` steps that follows from the cached grid. Raises InputError if nfe
    does not divide it.
    """
    depth = spec.parts[0].Q.shape[1] - 1
    grid = subgrid(spec.grid, nfe)
    every = (len(spec.grid) - 1) // nfe
    steps = coarse_steps(
        spec, nfe, config, dict(config.gains_by_nfe).get(nfe, SamplerGains(config.look_ahead))
    )
    joins = np.stack(
        [chen_join(spec.chain, spec.parts[i * every : (i + 1) * every], depth) for i in range(nfe)]
    )
    alpha, sigma = spec.chain.levels.alpha[grid[1:]], spec.chain.levels.sigma[grid[1:]]
    weights = {
        "marginal": 1.0 / (alpha**2 * DATA_STD**2 + sigma**2),
        "uniform": np.ones(nfe),
        "final": np.append(np.zeros(nfe - 1), float(nfe)),
    }[config.weighting]
    return StepSchedule(
        steps, torch.as_tensor(joins), torch.as_tensor(weights, dtype=torch.float32), every
    )


@torch.no_grad()
def mean_image(teacher: Denoiser, t: float, n: int = 256) -> Tensor:
    """The teacher's mean image (C, H, W): what it sees in pure noise, ema; classes in turn
    where it has them.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((n, *teacher.shape), generator=generator).to(teacher.device)
    return teacher.denoise(noise, t, teacher.default_condition(n)).mean(0).cpu()


def build_pipeline(
    teacher: Denoiser, spec: PathSpec, config: SigDEGConfig
) -> tuple[SigDEGPipeline, dict[int, StepSchedule]]:
    """The untrained generator as a pipeline, and its step schedules by number of steps. Weights are
    copied.
    """
    step_schedules = {nfe: make_step_schedule(spec, nfe, config) for nfe in config.nfe}
    C = teacher.shape[0]
    features = spec.parts[0].Q.shape[1]
    channels = C * (1 + features + int(config.memory)) + 1
    network = student_network(teacher.network, channels, config.trainable, config.lora_rank)
    limit = config.conditioning_limit
    noisy = limit is not None and any(
        s.sigma > limit * s.alpha for c in step_schedules.values() for s in c.steps
    )
    frozen = teacher.network if noisy and teacher.prediction_type == "epsilon" else None
    mean = mean_image(teacher, float(spec.chain.levels.t[0]))
    pipeline = SigDEGPipeline(
        unet=network,
        plans=steps_as_dicts({n: c.steps for n, c in step_schedules.items()}),
        prediction_type=teacher.prediction_type,
        shape=list(teacher.shape),
        mean_image=mean.mul(1e4).round().div(1e4).tolist(),
        memory=config.memory,
        clip=teacher.clip,
        conditioning_limit=limit if frozen is not None else None,
        num_classes=teacher.num_classes,
        vae=teacher.codec.vae,
        frozen=frozen,
    )
    return pipeline, step_schedules


class SigDEG:
    """The method: one role, ``student``; see :class:`models.methods.base.Method`.

    ``total_steps`` sets the pace at which windows grow.
    """

    ema = ("student",)

    def __init__(self, teacher: Denoiser, spec: PathSpec, config: SigDEGConfig, total_steps: int):
        self.teacher, self.config, self.total_steps = teacher, config, total_steps
        self.guidance = spec.guidance
        self.pipeline, self.step_schedules = build_pipeline(teacher, spec, config)
        self.pipeline.unet.to(teacher.device)
        self.networks: dict[str, nn.Module] = {"student": self.pipeline.unet}
        for module in self.pipeline.unet.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    def updates(self, step: int) -> Sequence[str]:
        return ("student",)

    def window(self, step: int, nfe: int) -> int:
        """Length of the training windows at a step: from ``window_start``, linearly, to the whole
        path.
        """
        until = self.config.window_until * self.total_steps
        grown = 1.0 if until <= 0 else min(1.0, step / until)
        start = min(self.config.window_start, nfe)
        return round(start + grown * (nfe - start))

    def loss(self, role: str, batch: PathBatch, generator: torch.Generator) -> Losses:
        """(8) + (9) on one batch of cached paths; the numbers of steps take turns."""
        nfe = self.config.nfe[batch.step % len(self.config.nfe)]
        step_schedule = self.step_schedules[nfe]
        Y, xi = batch.Y[:, :: step_schedule.every], step_schedule.features(batch.xi)
        length = self.window(batch.step, nfe)
        first = int(torch.randint(nfe - length + 1, (1,), generator=generator, device=Y.device))
        states = self._window(step_schedule, Y, xi, batch.condition, first, length)
        last = slice(first + 1, first + length + 1)
        weights = step_schedule.weights.to(Y.device)[first : first + length]
        path = path_loss(states.float(), Y[:, last], weights, self.config.power)
        terms = {f"path_{nfe}": path}
        total = self.config.path * path
        if (self.config.mmd or self.config.features) and first + length == nfe:
            mmd, features = self._distribution(states[:, -1].float(), Y[:, -1], batch, generator)
            terms |= {f"mmd_{nfe}": mmd, f"features_{nfe}": features}
            total = total + self.config.mmd * mmd + self.config.features * features
        return total, terms

    def _window(
        self,
        step_schedule: StepSchedule,
        Y: Tensor,
        xi: Tensor,
        condition: Condition | None,
        first: int,
        length: int,
    ) -> Tensor:
        """Student states (n, L, C, H, W) after steps first .. first + L - 1, from the teacher's
        state Y[:, first].

        History that lies before the window is the student's own answer at teacher states, without
        gradient.
        """
        mean = self.pipeline._mean(Y[:, 0])
        history: list[Tensor] = []
        with torch.no_grad():
            for i in range(max(0, first - self._past()), first):
                history.insert(
                    0,
                    self._denoise(
                        step_schedule.steps[i], Y[:, i], xi[:, i], history, mean, condition
                    ),
                )
        state, states = Y[:, first], []
        for i in range(first, first + length):
            step = step_schedule.steps[i]
            D = self._denoise(step, state, xi[:, i], history, mean, condition)
            state = next_state(step, state, path_average(step, D, history), xi[:, i])
            history = [D, *history]
            states.append(state)
        return torch.stack(states, 1)

    def _past(self) -> int:
        return max(self.config.order - 1, self.config.predict_order, int(self.config.memory))

    def _denoise(
        self,
        step: Step,
        state: Tensor,
        xi: Tensor,
        history: list[Tensor],
        mean: Tensor,
        condition: Condition | None,
    ) -> Tensor:
        def call(X: Tensor, z: Tensor) -> Tensor:
            return self.pipeline.denoise(step, X, z, history, condition)

        X = query_state(step, state, xi, history, mean)
        if self.config.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(call, X, xi, use_reentrant=False)  # type: ignore[no-any-return]
        return call(X, xi)

    def _distribution(
        self, x0: Tensor, target: Tensor, batch: PathBatch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """MMD and paired distance in the teacher's middle block, images renoised at one level in
        the lower 60 %.

        Paired images share their noise; real images, which have no partner, get noise of their own.
        """
        level = (
            torch.rand((), generator=generator, device=x0.device)
            * 0.6
            * self.teacher.schedule.train_steps
        )
        t = level.floor().expand(len(x0))
        eps = torch.randn(x0.shape, generator=generator, device=x0.device)
        student = self._features(x0, t, eps, batch.condition)
        with torch.no_grad():
            teacher = self._features(target, t, eps, batch.condition)
            reference = teacher
            if self.config.mmd and batch.real is not None:
                noise = torch.randn(batch.real.shape, generator=generator, device=x0.device)
                reference = self._features(
                    batch.real, level.floor().expand(len(noise)), noise, batch.condition
                )
        mmd = rbf_mmd(student.flatten(1), reference.flatten(1), self.config.mmd_bandwidths)
        return mmd, feature_loss(student, teacher)

    def _features(self, x0: Tensor, t: Tensor, eps: Tensor, condition: Condition | None) -> Tensor:
        alpha, sigma = (append_dims(v, x0) for v in self.teacher.schedule.alpha_sigma(t))
        return self.teacher.features(alpha * x0 + sigma * eps, t, condition)

    @torch.no_grad()
    def sample(self, noise: Tensor, condition: Condition | None = None, **options: Any) -> Tensor:
        """Clean states from start noise with the live weights; options ``nfe``, ``xi``,
        ``generator`` as in the pipeline.
        """
        return self.pipeline.rollout(
            noise, options.get("xi"), condition, options.get("nfe"), options.get("generator")
        )[0]


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
        return teacher.denoise(X, step.t, condition)

    return rollout(denoise, step_schedule.steps, Y, xi, mean)
