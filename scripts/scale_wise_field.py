"""How far scale-wise Sig-DEG is from the law of a Gaussian field, exactly: tables in Markdown.

    python -m scripts.scale_wise_field [--size 16] [--steps 4 6 10] [--exponent 2.5]

The untrained generator is linear in its normals where the teacher is a Wiener filter, so that its
answers to unit inputs give the covariance of its samples. Nothing is drawn.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.methods.sigdeg.build import plans_of
from models.methods.sigdeg.config import SigDEGConfig
from models.methods.sigdeg.pipeline import Step, details, lifted, reduced, rollout
from models.sampling.chain import Chain
from models.sampling.grids import adaptive_grid
from models.sampling.signature import bases
from models.sampling.trajectories import PathSpec
from models.teachers.gaussian_field import FieldTeacher, GaussianField, power_law

FINE = 60
ROWS = 512


def field_spec(field: GaussianField, chain: Chain, intervals: int) -> PathSpec:
    """The adaptive grid from the exact movement of the denoised image: for eta = 1 it is a
    martingale, so the mean squared movement is the growth of its variance.
    """
    alpha, sigma = chain.levels.alpha[:-1], chain.levels.sigma[:-1]
    power = field.power.ravel()
    levels = zip(alpha, sigma, strict=True)
    seen = [float((a**2 * power**2 / (a**2 * power + s**2)).mean()) for a, s in levels]
    grid = adaptive_grid(np.diff(seen), intervals)
    return PathSpec(chain, grid, bases(chain, grid, 2), seed=0)


def mirrors(size: int) -> Tensor:
    """(8, S S): the pixels after every reflection and quarter turn, under which nothing changes."""
    pixels = torch.arange(size**2).reshape(size, size)
    turned = [torch.rot90(p, k) for p in (pixels, pixels.T) for k in range(4)]
    return torch.stack(turned).flatten(1)


@torch.no_grad()
def covariances(teacher: FieldTeacher, steps: Sequence[Step]) -> list[Tensor]:
    """(S S, S S) float64 of every state Y_0 .. Y_N, from unit inputs; of inputs that are one
    another's mirror images the first is enough.
    """
    pixels, normals = teacher.shape[1] ** 2, len(steps[0].n)
    moved = [True] + [bool(a or b) for step in steps for a, b in zip(step.m, step.n, strict=True)]
    group = mirrors(teacher.shape[1])
    first, orbit = group.amin(0).unique(return_counts=True)
    fields = torch.arange(len(moved))[torch.tensor(moved)]
    places = (fields[:, None] * pixels + first).flatten()
    weight = (orbit / len(group)).double().repeat(len(fields))
    found = [torch.zeros(pixels, pixels, dtype=torch.float64) for _ in range(len(steps) + 1)]

    def denoise(step: Step, X: Tensor, z: Tensor, history: Sequence[Tensor]) -> Tensor:
        return step.reduction * teacher.denoise(step.scale * X, step.t)

    for chosen, part in zip(places.split(ROWS), weight.split(ROWS), strict=True):
        unit = torch.zeros(len(chosen), len(moved) * pixels, dtype=torch.float64)
        unit[torch.arange(len(chosen)), chosen] = part.sqrt()
        Y = unit[:, :pixels].reshape(-1, *teacher.shape)
        xi = unit[:, pixels:].reshape(-1, len(steps), normals, *teacher.shape)
        states = rollout(denoise, steps, Y, xi, torch.zeros(1, *teacher.shape)).flatten(2)
        for i, covariance in enumerate(found):
            covariance += states[:, i].T @ states[:, i]
    return [torch.stack([c[g][:, g] for g in group]).sum(0) for c in found]


def wasserstein(a: Tensor, b: Tensor) -> float:
    """The 2-Wasserstein distance of N(0, a) and N(0, b)."""
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp_min(0).sqrt().sum()
    return float((a.trace() + b.trace() - 2 * cross).clamp_min(0).sqrt())


def kl(a: Tensor, b: Tensor) -> float:
    """KL(N(0, a) || N(0, b)) in nats."""
    ratio = torch.linalg.solve(b, a)
    logs = torch.linalg.slogdet(b)[1] - torch.linalg.slogdet(a)[1]
    return float(0.5 * (ratio.trace() - len(a) + logs))


def entry_loss(field: GaussianField, step: Step, alpha: float, sigma: float) -> float:
    """(24) in nats: what the law loses where the size grows, at level (alpha, sigma), after
    ``step``, whose denoised image D gives the details; none of it is the low-pass part's.
    """
    factor, size = step.reduction, field.size
    small, C, H = size // factor, field.covariance(), high_pass(size, factor)
    eye = torch.eye(small**2, dtype=torch.float64).reshape(-1, 1, small, small)
    answer = factor * field.means(factor).denoise(step.scale * eye, step.alpha, step.sigma)
    up = details(lifted(answer, factor), factor).flatten(1).T  # of the state, (S S, s s)
    L = reduced(torch.eye(size**2, dtype=torch.float64).reshape(-1, size, size), factor)
    L = L.flatten(1).T
    # the network was asked at a low-pass state a L x0 + s eps
    a, s = step.alpha / (factor * step.scale), step.sigma / step.scale
    left = H - a * up @ L
    error = float((left @ C @ left.T).trace() + s**2 * up.square().sum())
    seen = L @ C @ L.T + (sigma / alpha) ** 2 * torch.eye(small**2, dtype=torch.float64)
    hidden = H @ (C - C @ L.T @ torch.linalg.solve(seen, L @ C)) @ H  # Cov(H x0 | L x)
    snr = (alpha / sigma) ** 2
    told = torch.linalg.slogdet(torch.eye(size**2, dtype=torch.float64) + snr * hidden)[1]
    return 0.5 * (snr * error - float(told))


def high_pass(size: int, factor: int) -> Tensor:
    """H of (6a) as a matrix (S S, S S)."""
    eye = torch.eye(size**2, dtype=torch.float64).reshape(-1, size, size)
    return details(eye, factor).flatten(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 6, 10])
    parser.add_argument("--exponent", type=float, default=2.5)
    arguments = parser.parse_args()
    field = power_law(arguments.size, arguments.exponent)
    teacher, target = FieldTeacher(field), field.covariance()
    H = high_pass(field.size, 2)
    unit = float(target.trace()) ** 0.5
    chain = Chain(teacher.schedule.levels(FINE), 1.0)
    print("| steps | at half size | SNR there | lost there | W2 | variance, low | details |")
    print("|---|---|---|---|---|---|---|")
    for count in arguments.steps:
        spec = field_spec(field, chain, count)
        for small in range(count):
            start = [chain.levels.sigma[k] for k in spec.grid]
            pairs = ((1.0, field.size // 2), (float(start[small]) + 1e-9, field.size))
            config = SigDEGConfig.model_validate(
                {"nfe": (count,), "scales": {"pairs": pairs if small else ()}}
            )
            plan = plans_of(teacher, spec, config)[count]
            law = covariances(teacher, plan)[-1]
            distance = wasserstein(target, law) / unit
            of_details = float((H @ law).trace() / (H @ target).trace())
            of_low = float((law - H @ law).trace() / (target - H @ target).trace())
            k, lost = spec.grid[small], 0.0
            if small:
                level = float(chain.levels.alpha[k]), float(chain.levels.sigma[k])
                lost = entry_loss(field, plan[small - 1], *level) / field.size**2
            print(
                f"| {count} | {small} | {chain.snr[k]:.3f} | {lost:.4f} | {distance:.4f} | "
                f"{of_low:.3f} | {of_details:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
