"""Sig-DEG: a signature-based differential-equation generator (arXiv 2508.16939), distilled from a
teacher's fine chain.

The generator takes N coarse steps, one network call each, fed with the partial signature xi_i of
the Brownian path of the step (models/sampling/signature.py); its step is (3), (6), (7) of
models/methods/sigdeg/pipeline.py. Before any training it is the exponential integrator of
models/methods/sigdeg/integrator.py. Training is pathwise: the same start noise and the same
Brownian path as a cached teacher trajectory,

    L = path * mean_i ||Y_i^student - Y_i^teacher||^2 / (alpha_i^2 s^2 + sigma_i^2)              (8)
        + mmd * MMD^2(phi(x0^student), phi(x0^teacher)) + features * ||phi(x0^student) -
        phi(x0^teacher)||^2  (9)

with s the data's std, 0.5 for images and 1 for scaled series, and phi the teacher's middle block
on renoised data. Windows of L steps start at a teacher state
and grow to the whole path. Squared error alone ends at the conditional mean given the signature,
which is paler than the data; (9) restores it. With `loss.score` the network has one more standard
normal, e, as an input, and two rollouts along the same path, with e of their own, are scored by

    score * mean_i ES(Y_i^student, Y_i^student', Y_i^teacher)                                   (17)

of models/methods/scoring.py, whose optimum is the teacher's law given the signature, not its mean.
Only the paper's abstract was at hand; the rest is derived here (docs/methods.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.common.errors import InputError
from models.common.random import generator_for
from models.common.shapes import append_dims
from models.methods.base import (
    DistillationMethod,
    Losses,
    MethodContext,
    PathBatch,
    without_dropout,
)
from models.methods.losses import feature_loss, path_loss, rbf_mmd
from models.methods.scoring import energy_score, spread_ratio
from models.methods.sigdeg.build import (
    StepSchedule,
    build_pipeline,
    calibrated_gains,
    gains_for,
    history_length,
    make_step_schedule,
    plans_of,
    window_length,
)
from models.methods.sigdeg.calibration import calibrate
from models.methods.sigdeg.config import SigDEGConfig
from models.methods.sigdeg.costs import SigDEGCosts
from models.methods.sigdeg.pipeline import (
    SigDEGPipeline,
    Step,
    coarse_step,
    rollout,
)
from models.methods.sigdeg.scales import over_sizes, small_size_errors
from models.sampling.trajectories import PathSpec
from models.teachers.conditioning import Condition
from models.teachers.guidance import weight_closeness


class SigDEG(DistillationMethod):
    """The method, with one role, ``student``.

    ``context.total_steps`` sets the pace at which windows grow; ``context.spec`` is that of the
    cached paths.
    """

    name = "sigdeg"
    Config = SigDEGConfig
    needs = "paths"
    config: SigDEGConfig
    pipeline: SigDEGPipeline

    def __init__(self, context: MethodContext):
        super().__init__(context)
        gains = calibrated_gains(context.diagnostics)
        self.step_schedules = {
            n: make_step_schedule(
                _spec(context),
                n,
                self.config,
                gains_for(n, self.config, gains),
                self.teacher.codec.data_std,
                self.teacher,
            )
            for n in self.config.nfe
        }
        without_dropout(self.networks)

    @classmethod
    def costs(cls, context: MethodContext, real: bool = False) -> SigDEGCosts:
        return SigDEGCosts(context, real)

    @classmethod
    def prepare(cls, context: MethodContext) -> dict[str, Any]:
        """The calibrated gains of every number of steps, and all trials; first the teacher's errors
        at small sizes, where there are any.
        """
        config, spec = context.config, _spec(context)
        found: dict[str, Any] = {}
        if config.scales.pairs:
            plans = plans_of(context.teacher, spec, config)
            found["scales"] = small_size_errors(context, plans, spec)
        return found | (calibrate(context, spec) if config.calibrate else {})

    @classmethod
    def untrained(cls, context: MethodContext) -> SigDEGPipeline:
        """The calibrated integrator around a copy of the teacher's network."""
        gains = calibrated_gains(context.diagnostics)
        return build_pipeline(context.teacher, _spec(context), context.config, gains)

    @classmethod
    def image_target(cls, config: SigDEGConfig) -> tuple[str, str]:
        """That of the distribution term (9), where it is used."""
        return config.loss.mmd_target if config.loss.mmd else "teacher", "method.loss.mmd_target"

    @classmethod
    def check_sharding(cls, config: SigDEGConfig) -> None:
        """Windows below the whole path begin anywhere, and so make more or fewer calls."""
        if config.window.grow_until and config.window.start < max(config.nfe):
            raise InputError(
                f"student.sharding = full: method.window.start = {config.window.start} is below "
                f"{max(config.nfe)} steps, and workers would begin at different ones; set "
                "method.window.grow_until to 0.0"
            )

    def window(self, step: int, nfe: int) -> int:
        """Length of the training windows at a step."""
        return window_length(self.config, self.context.total_steps, step, nfe)

    def loss(self, role: str, batch: PathBatch, generator: torch.Generator) -> Losses:
        """(8) + (9) + (17) on one batch of cached paths; the numbers of steps take turns. (8) and
        (9) are of the first of two rollouts.
        """
        nfe = self.config.nfe[batch.step % len(self.config.nfe)]
        step_schedule = self.step_schedules[nfe]
        Y, xi = step_schedule.states(batch.Y), step_schedule.features(batch.xi)
        length = self.window(batch.step, nfe)
        first = int(torch.randint(nfe - length + 1, (1,), generator=generator, device=Y.device))
        weight = self.config.loss
        states, *others = (
            self._window(step_schedule, Y, noisy, batch.condition, first, length).float()
            for noisy in self._draws(step_schedule, xi, generator)
        )
        target = Y[:, first + 1 : first + length + 1]
        weights = step_schedule.weights.to(Y.device)[first : first + length]
        steps = step_schedule.steps[first : first + length]
        path = over_sizes(
            steps, weights, lambda p, y, w: path_loss(p, y, w, weight.power), states, target
        )
        terms = {f"path_{nfe}": path}
        total = weight.path * path
        for other in others:
            draws = (states, other, target)
            score = over_sizes(steps, weights, self._score, *draws)
            spread = over_sizes(steps, weights, spread_ratio, *draws)
            terms |= {f"score_{nfe}": score, f"spread_{nfe}": spread}
            total = total + weight.score * score
        if (weight.mmd or weight.features) and first + length == nfe:
            mmd, features = self._distribution(states[:, -1], Y[:, -1], batch, generator)
            terms |= {f"mmd_{nfe}": mmd, f"features_{nfe}": features}
            total = total + weight.mmd * mmd + weight.features * features
        return total, terms

    def _score(self, p: Tensor, q: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        settings = self.config.loss
        return energy_score(p, q, y, weights, settings.score_beta, settings.score_patches)

    def _draws(
        self, step_schedule: StepSchedule, xi: Tensor, generator: torch.Generator
    ) -> list[Tensor]:
        """The rollouts' normals: two with e of their own where the score is trained, else one."""
        count = 2 if self.config.loss.score else 1
        return [step_schedule.with_noise(xi, generator) for _ in range(count)]

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
        mean, steps = self.pipeline._mean(Y[:, 0]), step_schedule.steps
        history: list[Tensor] = []

        def denoise(step: Step, X: Tensor, z: Tensor, past: Sequence[Tensor]) -> Tensor:
            def call(X: Tensor, z: Tensor) -> Tensor:
                return self.pipeline.denoise(step, X, z, past, condition)

            return self.checkpointed(call, X, z)

        with torch.no_grad():
            for i in range(max(0, first - history_length(self.config)), first):
                at, z = Y[:, i], xi[:, i]
                history.insert(0, coarse_step(denoise, steps[i], at, at, z, history, mean)[2])
        state, states = Y[:, first], []
        noise = state
        for i in range(first, first + length):
            state, noise, D = coarse_step(denoise, steps[i], state, noise, xi[:, i], history, mean)
            history = [D, *history]
            states.append(state)
        return torch.stack(states, 1)

    def _distribution(
        self, x0: Tensor, target: Tensor, batch: PathBatch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """MMD and paired distance in the teacher's middle block, images renoised at one level in
        the lower 60 %.

        Paired images share their noise; real images, which have no partner, get noise of their own.
        """
        place = torch.rand((), generator=generator, device=x0.device)
        schedule = self.teacher.schedule
        level = schedule.snap(schedule.reach(place * 0.6))
        t = level.expand(len(x0))
        eps = torch.randn(x0.shape, generator=generator, device=x0.device)
        student = self._features(x0, t, eps, batch.condition)
        with torch.no_grad():
            teacher = self._features(target, t, eps, batch.condition)
            reference = teacher
            if self.config.loss.mmd and batch.real is not None:
                noise = torch.randn(batch.real.shape, generator=generator, device=x0.device)
                reference = self._features(
                    batch.real, level.expand(len(noise)), noise, batch.condition
                )
        near = weight_closeness(batch.condition, self.context.guidance)
        widths = self.config.loss.mmd_bandwidths
        mmd = rbf_mmd(student.flatten(1), reference.flatten(1), widths, closeness=near)
        return mmd, feature_loss(student, teacher)

    def _features(self, x0: Tensor, t: Tensor, eps: Tensor, condition: Condition | None) -> Tensor:
        alpha, sigma = (append_dims(v, x0) for v in self.teacher.schedule.alpha_sigma(t))
        return self.teacher.features(alpha * x0 + sigma * eps, t, condition)

    @torch.no_grad()
    def validation_figures(self, nfe: int, paths: PathBatch) -> dict[str, float]:
        """RMSE of the last state to the teacher's, along the same Brownian paths."""
        step_schedule, pipeline, Y = self.step_schedules[nfe], self.pipeline, paths.Y
        generator = generator_for(Y.device, self.context.seed, 23)
        states = rollout(
            lambda s, X, z, h: pipeline.denoise(s, X, z, h, paths.condition),
            step_schedule.steps,
            Y[:, 0],
            step_schedule.with_noise(step_schedule.features(paths.xi), generator),
            pipeline._mean(Y[:, 0]),
        )
        error = (states[:, -1] - Y[:, -1]).square().mean().sqrt()
        return {f"path_rmse_{nfe}": float(error)}


def _spec(context: MethodContext) -> PathSpec:
    if context.spec is None:
        raise ValueError("Sig-DEG follows cached paths: expected a context with their spec")
    return context.spec
