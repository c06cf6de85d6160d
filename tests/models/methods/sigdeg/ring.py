"""A teacher whose law is known: eight Gaussians on a ring, unequal weights, the exact denoiser.

Sig-DEG's own chain, adaptive grid, signatures, integrator and losses, with a small network in the
place of a UNet: it adds to the denoised image D what a residual network of (X, D, xi, e, i) says.
From the command line it prints the table of docs/LOG.md:

    python -m tests.models.methods.sigdeg.ring --nfe 2 3 5 --loss squared energy --seeds 0 1
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from models.common.random import generator_for
from models.methods.losses import path_loss
from models.methods.scoring import energy_score, spread_ratio
from models.methods.sigdeg.integrator import make_plan
from models.methods.sigdeg.pipeline import Step, rollout
from models.sampling.chain import Chain
from models.sampling.grids import adaptive_grid
from models.sampling.signature import bases
from models.teachers.gaussian_mixture import GaussianMixture
from models.teachers.schedule import Levels

STEPS, MODES, RADIUS, TAU = 100, 8, 1.0, 0.1
POOL, BATCH, RATE = 131_072, 256, 1e-3
DATA_VARIANCE = RADIUS**2 / 2 + TAU**2

LOSSES = ("squared", "energy", "squared_then_energy")
# What the network is told of the Brownian path: its signature, the step's noise alone (xi_0), or
# nothing. `own`: nothing, and the draws have paths of their own, not the teacher's.
INPUTS = ("signature", "noise", "none", "own")


@dataclass(frozen=True)
class Setting:
    """One training: ``steps`` of batch 256, full rollouts of ``nfe`` coarse steps. ``noise``: of the
    energy score, an input of all steps but the last, or of all (`method.loss.score_noise`).
    """

    nfe: int
    loss: str = "energy"
    beta: float = 1.0
    depth: int = 2
    inputs: str = "signature"
    look_ahead: float = 0.25
    steps: int = 5_000
    seed: int = 0
    noise: Literal["inner", "all"] = "inner"


def ring() -> GaussianMixture:
    """Weights 1 to 8 in turn, so that a law with the right modes and equal weights is wrong."""
    angles = torch.arange(MODES) * (2 * math.pi / MODES)
    weights = torch.arange(1, MODES + 1).double()
    means = RADIUS * torch.stack([angles.cos(), angles.sin()], 1)
    return GaussianMixture(means, weights / weights.sum(), TAU)


def ring_chain() -> Chain:
    """DDPM's linear schedule, 100 of 1,000 levels, trailing, eta = 1."""
    cumulated = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
    t = 999 - np.arange(STEPS) * (1000 // STEPS)
    alpha = np.append(np.sqrt(cumulated[t]), 1.0)
    return Chain(Levels(t.astype(np.float64), alpha, np.sqrt(1.0 - alpha**2)))


@dataclass(frozen=True)
class Paths:
    """Teacher paths: ``states`` (n, N + 1, 2) at the coarse grid and ``xi`` (n, N, m + 1, 2)."""

    states: Tensor
    xi: Tensor


def fine_path(n: int, *key: int) -> tuple[Tensor, Tensor, Tensor]:
    """States (K + 1, n, 2), denoised (K, n, 2) and noise (K, n, 2) of the exact chain (1)."""
    mixture, chain = ring(), ring_chain()
    generator = generator_for("cpu", *key)
    z = torch.randn(STEPS + 1, n, 2, generator=generator, dtype=torch.float64)
    states, denoised = [z[0]], []
    for k in range(STEPS):
        denoised.append(
            mixture.denoise(states[-1], float(chain.levels.alpha[k]), float(chain.levels.sigma[k]))
        )
        states.append(
            float(chain.a[k]) * states[-1]
            + float(chain.b[k]) * denoised[-1]
            + float(chain.s[k]) * z[k + 1]
        )
    return torch.stack(states), torch.stack(denoised), z[1:]


@cache
def ring_grid(nfe: int) -> tuple[int, ...]:
    """The adaptive grid, from the movement of 2,000 pilot paths."""
    denoised = fine_path(2_000, 0)[1]
    movement = (denoised[1:] - denoised[:-1]).square().mean((1, 2)).numpy()
    return tuple(adaptive_grid(movement, nfe).tolist())


@lru_cache(maxsize=2)
def training_paths(nfe: int, depth: int) -> Paths:
    """The pool that batches are drawn from, float32."""
    grid = np.asarray(ring_grid(nfe))
    parts = [torch.as_tensor(part.Q) for part in bases(ring_chain(), grid, depth)]
    states, features = [], []
    for piece in range(POOL // 8_192):
        fine, _, z = fine_path(8_192, 1, piece)
        states.append(fine[grid].transpose(0, 1).float())
        spans = itertools.pairwise(grid.tolist())
        xi = [
            torch.einsum("kp,knd->npd", Q, z[lo:hi])
            for Q, (lo, hi) in zip(parts, spans, strict=True)
        ]
        features.append(torch.stack(xi, 1).float())
    return Paths(torch.cat(states), torch.cat(features))


@lru_cache(maxsize=8)
def teacher_samples(n: int, seed: int) -> Tensor:
    """(n, 2) ends of the exact fine chain."""
    return fine_path(n, 2, seed)[0][-1]


class RingStudent(nn.Module):
    """D_i = exact denoiser at X + residual network of (X, D, xi, e, i), zero at the start."""

    def __init__(self, setting: Setting):
        super().__init__()
        torch.manual_seed(setting.seed)
        self.setting, self.mixture = setting, ring()
        chain, grid = ring_chain(), np.asarray(ring_grid(setting.nfe))
        parts = bases(chain, grid, setting.depth)
        self.plan = make_plan(chain, parts, 2, setting.look_ahead, 2)
        told = {"signature": setting.depth + 1, "noise": 1}.get(setting.inputs, 0)
        self.told, self.draws_e = told, setting.loss != "squared"
        width = 2 * (2 + told + int(self.draws_e)) + setting.nfe
        self.layers = nn.ModuleList(
            [nn.Linear(width, 128), nn.Linear(128, 128), nn.Linear(128, 128)]
        )
        self.out = nn.Linear(128, 2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        index = torch.eye(setting.nfe)
        self.places = {step.t: index[i] for i, step in enumerate(self.plan)}

    def correction(self, step: Step, X: Tensor, D: Tensor, xi: Tensor, e: Tensor) -> Tensor:
        place = self.places[step.t].expand(len(X), -1)
        kept = torch.tensor(step.kept[: self.told]).view(1, -1, 1)
        inputs = [X, D, (xi[:, : self.told] * kept).flatten(1), place]
        h = torch.relu(self.layers[0](torch.cat([*inputs, e], 1)))
        for layer in list(self.layers)[1:]:
            h = h + torch.relu(layer(h))
        out: Tensor = self.out(h)
        return out

    def forward(self, Y: Tensor, xi: Tensor, e: Tensor) -> Tensor:
        """States (n, N + 1, 2) from Y (n, 2), xi (n, N, m + 1, 2), e (n, N, 2)."""
        mean = (self.mixture.weights @ self.mixture.means).float().expand_as(Y)
        if self.setting.noise == "inner":
            e = torch.cat([e[:, :-1], torch.zeros_like(e[:, -1:])], 1)
        place = {step.t: i for i, step in enumerate(self.plan)}

        def denoise(step: Step, X: Tensor, z: Tensor, history: Sequence[Tensor]) -> Tensor:
            D = self.mixture.denoise(X.double(), step.alpha, step.sigma).float()
            noise = e[:, place[step.t]] if self.draws_e else e[:, 0, :0]
            return D + self.correction(step, X, D, z, noise)

        return rollout(denoise, self.plan, Y, xi, mean)


def step_loss(student: RingStudent, paths: Paths, loss: str, generator: torch.Generator) -> Tensor:
    """Path error or energy score of one batch's full rollouts, weighted as in training."""
    setting = student.setting
    rows = torch.randint(len(paths.states), (BATCH,), generator=generator)
    y, xi = paths.states[rows], paths.xi[rows]
    draws = 1 if loss == "squared" else 2
    e = torch.randn(draws * BATCH, setting.nfe, 2, generator=generator)
    xi = xi.repeat(draws, 1, 1, 1)
    if setting.inputs == "own":
        xi = torch.randn(xi.shape, generator=generator)
    states = student(y[:, 0].repeat(draws, 1), xi, e)[:, 1:]
    weights = step_weights(setting.nfe)
    if loss == "squared":
        return path_loss(*(v[..., None, None] for v in (states, y[:, 1:])), weights)
    p, q = states.chunk(2)
    return energy_score(p, q, y[:, 1:], weights, setting.beta)


def step_weights(nfe: int) -> Tensor:
    """Inverse marginal variances at the coarse grid, (N,)."""
    levels, grid = ring_chain().levels, np.asarray(ring_grid(nfe))[1:]
    variance = levels.alpha[grid] ** 2 * DATA_VARIANCE + levels.sigma[grid] ** 2
    return torch.as_tensor(1.0 / variance, dtype=torch.float32)


def train(setting: Setting) -> RingStudent:
    """A student trained by Adam with a cosine rate; the same number of steps for every loss."""
    student = RingStudent(setting)
    paths = training_paths(setting.nfe, setting.depth)
    generator = generator_for("cpu", 3, setting.seed)
    optimizer = torch.optim.Adam(student.parameters(), lr=RATE)
    for step in range(setting.steps):
        optimizer.param_groups[0]["lr"] = (
            RATE * 0.5 * (1 + math.cos(math.pi * step / setting.steps))
        )
        loss = setting.loss
        if loss == "squared_then_energy":
            loss = "squared" if step < setting.steps // 2 else "energy"
        optimizer.zero_grad(set_to_none=True)
        step_loss(student, paths, loss, generator).backward()
        optimizer.step()
    return student


@torch.no_grad()
def student_samples(student: RingStudent, n: int, seed: int) -> Tensor:
    """(n, 2) ends of rollouts from fresh noise, xi and e."""
    setting, generator = student.setting, generator_for("cpu", 4, seed)
    Y = torch.randn(n, 2, generator=generator)
    xi = torch.randn(n, setting.nfe, setting.depth + 1, 2, generator=generator)
    e = torch.randn(n, setting.nfe, 2, generator=generator)
    return student(Y, xi, e)[:, -1]


def sliced_wasserstein(x: Tensor, y: Tensor, directions: int = 64) -> float:
    """Sliced Wasserstein distance of order 2 between equally many samples (n, 2) (Bonneel et al.
    2015); evenly spaced directions, so that it is exact in the number of directions and not random.
    """
    angles = torch.arange(directions).double() * (math.pi / directions)
    axes = torch.stack([angles.cos(), angles.sin()])
    u, v = ((points.double() @ axes).sort(0).values for points in (x, y))
    return float((u - v).square().mean().sqrt())


def distance_to_teacher(student: RingStudent, samples: int = 40_000, seeds: int = 4) -> float:
    """Mean over independent pairs of sample sets: a single pair is as much noise as signal."""
    return float(
        np.mean(
            [
                sliced_wasserstein(
                    student_samples(student, samples, seed), teacher_samples(samples, seed)
                )
                for seed in range(seeds)
            ]
        )
    )


@torch.no_grad()
def diagnostics(student: RingStudent) -> tuple[float, float]:
    """Path RMSE at the end over 8,192 training paths, and the spread ratio of two draws there."""
    nfe = student.setting.nfe
    paths = training_paths(nfe, student.setting.depth)
    y, xi = paths.states[:8_192], paths.xi[:8_192]
    generator = generator_for("cpu", 5)
    p, q = (
        student(y[:, 0], xi, torch.randn(len(y), nfe, 2, generator=generator))[:, -1:]
        for _ in range(2)
    )
    rmse = float((p - y[:, -1:]).square().mean().sqrt())
    return rmse, float(spread_ratio(p, q, y[:, -1:], torch.ones(1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nfe", type=int, nargs="+", default=[2, 3, 5])
    parser.add_argument("--loss", nargs="+", choices=[*LOSSES, "none"], default=["energy"])
    parser.add_argument("--beta", type=float, nargs="+", default=[1.0])
    parser.add_argument("--depth", type=int, nargs="+", default=[2])
    parser.add_argument("--inputs", nargs="+", choices=INPUTS, default=["signature"])
    parser.add_argument("--look-ahead", type=float, nargs="+", default=[0.25])
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--noise", choices=["inner", "all"], default="inner")
    args = parser.parse_args()
    torch.set_num_threads(1)
    choices = itertools.product(
        args.nfe, args.depth, args.loss, args.beta, args.inputs, args.look_ahead, args.seeds
    )
    for nfe, depth, loss, beta, inputs, look_ahead, seed in choices:
        start = time.perf_counter()
        setting = Setting(nfe, loss, beta, depth, inputs, look_ahead, args.steps, seed, args.noise)
        untrained = loss == "none"
        student = train(replace(setting, steps=0) if untrained else setting)
        rmse, spread = diagnostics(student)
        print(
            f"nfe {nfe} | {loss} | beta {beta} | depth {depth} | {inputs} | ahead {look_ahead} | "
            f"seed {seed} | SW2 {distance_to_teacher(student):.4f} | path RMSE {rmse:.4f} | "
            f"spread {spread:.3f} | {time.perf_counter() - start:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
