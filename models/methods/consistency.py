"""Consistency distillation (Song et al. 2023, arXiv 2303.01469) with an averaged target.

A consistency function maps every state of a deterministic path to the path's clean end. With
D the denoised image that the network makes of x at time t, and s = sigma / alpha there, it is

    f(x, t) = c_skip x / alpha + c_out F,    F = (D - k_skip x / alpha) / k_out                (20)
    c_skip = d^2 / ((s - e)^2 + d^2),        c_out = d (s - e) / sqrt(s^2 + d^2)
    k_skip = d^2 / (s^2 + d^2),              k_out = d s / sqrt(s^2 + d^2)

with d `sigma_data` and e `sigma_min`: the paper's parametrization, F being the network of an EDM
model, and of any other teacher what it would be if it were one. So f(x, t) = x / alpha exactly
where s = e, the boundary condition, and the untrained f is nearly D where s >> e.

Neighbouring states Y_i, Y_{i+1} of a cached path, i uniform over the coarse grid, are told apart by
the teacher's own fine ODE steps, so (21) needs no call of the teacher:

    L = dist(f(Y_i, t_i), sg(f^-(Y_{i+1}, t_{i+1}))),   f^-(Y_N) = Y_N, the clean end          (21)
    theta^- <- mu theta^- + (1 - mu) theta,   mu = `target_decay`, after every step            (22)

sg stops the gradient. Sampling (models/methods/multistep_pipeline.py) alternates f with fresh
noise at the next time (algorithm 1 of the paper).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.common.errors import InputError
from models.common.shapes import append_dims
from models.methods.base import (
    DistillationMethod,
    Losses,
    MethodContext,
    PathBatch,
    without_dropout,
)
from models.methods.consistency_config import ConsistencyConfig
from models.methods.costs import Call, Costs, Updates
from models.methods.multistep_pipeline import MultistepPipeline
from models.methods.ode_paths import grid_levels, multistep_student, ode_spec
from models.teachers.base import Denoiser
from models.teachers.conditioning import Condition

HUBER = 0.00054  # c / sqrt(entries), Song and Dhariwal 2024 (arXiv 2310.14189)


def boundary_weights(
    alpha: float, sigma: float, sigma_min: float, sigma_data: float
) -> tuple[float, float]:
    """(skip, out) of f = skip x + out D, (20) solved for the state and the denoised image.

    At sigma / alpha = ``sigma_min`` they are (1 / alpha, 0), exactly. At pure noise, alpha = 0,
    they are (0, 1), the limit.
    """
    if alpha == 0.0:
        return 0.0, 1.0
    s, variance = sigma / alpha, sigma_data**2
    out = (s - sigma_min) / s  # c_out / k_out
    skip = variance / ((s - sigma_min) ** 2 + variance) - out * variance / (s**2 + variance)
    return skip / alpha, out


def distance(u: Tensor, v: Tensor, kind: str) -> Tensor:
    """Mean distance of u and v (n, *shape): squared, absolute, or sqrt(|u - v|^2 + c^2) - c per
    sample.
    """
    if kind == "huber":
        entries = u[0].numel()
        c = HUBER * math.sqrt(entries)
        squares = (u - v).square().flatten(1).sum(1)
        # over sqrt(entries), so that losses of different shapes are alike
        return ((squares + c**2).sqrt() - c).mean() / math.sqrt(entries)
    error = (u - v).abs()
    return (error if kind == "l1" else error.square()).mean()


class ConsistencyCosts(Costs):
    """One pair of neighbours a path: the student's answer, and the target's."""

    copies = ("target",)

    def updates(self, step: int, micro: int = 0) -> Updates:
        return [("student", [Call("student", 1, "weights"), Call("target")])]

    def sampling(self, nfe: int) -> Sequence[Call]:
        return [Call("student")] * nfe

    def figures(self, nfe: int) -> Sequence[Call]:
        return [Call("student")] if nfe == max(self.config.nfe) else ()


class Consistency(DistillationMethod):
    """The method: roles ``student``, which is trained, and ``target``, its moving average.

    The target is among the networks so that checkpoints hold it; no optimizer ever steps it.
    """

    name = "consistency"
    Config = ConsistencyConfig
    needs = "paths"
    config: ConsistencyConfig
    pipeline: MultistepPipeline

    def __init__(self, context: MethodContext):
        super().__init__(context)
        student = self.pipeline.unet
        self.networks = {"student": student, "target": copy.deepcopy(student)}
        without_dropout(self.networks)
        spec = ode_spec(context)
        levels = grid_levels(spec, len(spec.grid) - 1)
        weights = [_weights(context, level) for level in levels]
        device = self.teacher.device
        self._t = torch.tensor([t for t, *_ in levels], dtype=torch.float32, device=device)
        self._weights = torch.tensor(weights, dtype=torch.float32, device=device)  # (N, 2)

    @classmethod
    def costs(cls, context: MethodContext, real: bool = False) -> ConsistencyCosts:
        return ConsistencyCosts(context, real)

    @classmethod
    def check_sharding(cls, config: Any) -> None:
        """Nothing to refuse: what is called depends on the step alone."""

    @classmethod
    def untrained(cls, context: MethodContext) -> MultistepPipeline:
        """(20) around a copy of the teacher's network."""
        spec = ode_spec(context)
        levels = {
            nfe: [(*level, *_weights(context, level)) for level in grid_levels(spec, nfe)]
            for nfe in context.config.nfe
        }
        return multistep_student(context, levels, "Consistency")

    def updates(self, step: int) -> tuple[str, ...]:
        return ("student",)

    def loss(self, role: str, batch: PathBatch, generator: torch.Generator) -> Losses:
        """(21) on one pair of neighbours of each cached path."""
        rows = torch.arange(len(batch.Y), device=batch.Y.device)
        shape = (len(rows),)
        i = torch.randint(len(self._t), shape, generator=generator, device=rows.device)
        answer = self.answer("student", batch.Y[rows, i], i, batch.condition)
        target = self.target(batch.Y[rows, i + 1], i + 1, batch.condition)
        error = distance(answer.float(), target, self.config.distance)
        return error, {"consistency": error}

    @torch.no_grad()
    def target(self, x: Tensor, i: Tensor, condition: Condition | None) -> Tensor:
        """f^- (n, *shape) at grid points i (n,) in 1 .. N; clean states, i = N, as they are."""
        clean = i == len(self._t)
        answer = self.answer("target", x, i.clamp(max=len(self._t) - 1), condition)
        return torch.where(append_dims(clean, x), x, answer.float())

    def answer(self, role: str, x: Tensor, i: Tensor, condition: Condition | None) -> Tensor:
        """f (n, *shape) of the student or the target for states x at grid points i (n,) < N."""
        denoiser: Denoiser = self.teacher.with_network(self.networks[role])
        t, weights = self._t.to(x.device)[i], self._weights.to(x)[i]
        x0 = self.checkpointed(denoiser.denoise, x, t, condition)
        skip, out = (append_dims(w, x) for w in weights.unbind(1))
        return skip * x + out * x0

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """(22)."""
        pairs = zip(
            self.networks["target"].parameters(), self.networks["student"].parameters(), strict=True
        )
        for average, live in pairs:
            average.lerp_(live, 1.0 - self.config.target_decay)

    @torch.no_grad()
    def validation_figures(self, nfe: int, paths: PathBatch) -> dict[str, float]:
        """RMSE of the answer to the start noise to the path's end; the same for all ``nfe``, so
        told with the largest alone.
        """
        if nfe != max(self.nfe):
            return {}
        first = torch.zeros(len(paths.Y), dtype=torch.long, device=paths.Y.device)
        answer = self.answer("student", paths.Y[:, 0], first, paths.condition)
        return {"end_rmse": float((answer - paths.Y[:, -1]).square().mean().sqrt())}


def _weights(context: MethodContext, level: tuple[float, float, float]) -> tuple[float, float]:
    """Those of (20) at (t, alpha, sigma); InputError where the boundary lies above that level."""
    config: ConsistencyConfig = context.config
    t, alpha, sigma = level
    if sigma <= config.sigma_min * alpha:
        raise InputError(
            f"method.sigma_min = {config.sigma_min}: expected below sigma / alpha = "
            f"{sigma / alpha:.3g} at time {t:g}, the smallest that the network is asked at"
        )
    data_std = config.sigma_data or context.teacher.codec.data_std
    return boundary_weights(alpha, sigma, config.sigma_min, data_std)
