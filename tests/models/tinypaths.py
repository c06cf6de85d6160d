"""Grids, noise and paths small enough to compute in every test."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from models.methods.base import PathBatch
from models.sampling.chain import Chain
from models.sampling.grids import coarse_grid
from models.sampling.signature import bases, feature_matrix
from models.sampling.trajectories import PathSpec, path_labels, path_noise
from models.teachers.architectures import build_network, build_scheduler
from models.teachers.base import Denoiser
from models.teachers.codec import ScaledCodec
from models.teachers.conditioning import Condition
from models.teachers.loading import build_denoiser
from tests.tiny import perturbed, tiny_dit, tiny_teacher, tiny_unet

KINDS = ("epsilon", "v_prediction", "sample", "flow", "dit", "conditional")


def teacher_of(kind: str) -> Denoiser:
    """A UNet of that prediction, a class-conditional DiT (epsilon) or UNet (v)."""
    if kind == "flow":
        return build_denoiser(tiny_unet(), FlowMatchEulerDiscreteScheduler(shift=2.0))
    if kind == "dit":
        return build_denoiser(tiny_dit(), build_scheduler("epsilon", "linear"))
    if kind == "conditional":
        return build_denoiser(
            tiny_unet(classes=3), build_scheduler("v_prediction", "cosine"), null_class=3
        )
    return tiny_teacher(kind)


def series_teacher() -> Denoiser:
    """Series of two channels and length 16 with a scaling of their own, flow matching."""
    torch.manual_seed(0)
    network = perturbed(build_network((2, 16), (8, 16), 1))
    teacher = build_denoiser(network, FlowMatchEulerDiscreteScheduler())
    teacher.codec = ScaledCodec([1.0, -2.0], [3.0, 0.5])
    return teacher


def spec_of(
    teacher: Denoiser, steps: int = 12, intervals: int = 4, depth: int = 2, eta: float = 1.0
) -> PathSpec:
    """The chain of ``steps`` with an even grid."""
    chain = Chain(teacher.schedule.levels(steps), eta)
    grid = coarse_grid(chain, intervals)
    return PathSpec(chain, grid, bases(chain, grid, depth), seed=3)


def features_of(spec: PathSpec, z: Tensor) -> Tensor:
    """xi (n, N, m + 1, C, H, W) from the chain's noise z (n, K, C, H, W)."""
    weights = torch.as_tensor(feature_matrix(spec.parts), dtype=z.dtype)
    return torch.einsum("ipk,nk...->nip...", weights, z)


@torch.no_grad()
def fine_paths(
    teacher: Denoiser, spec: PathSpec, n: int
) -> tuple[Tensor, Tensor, Condition | None]:
    """(states (n, K + 1, C, H, W), noise (n, K, C, H, W), condition) of the chain, plainly."""
    noise = path_noise(spec, "train", range(n), teacher.shape)
    condition = teacher.encode_condition(path_labels(spec, teacher, range(n)))
    states = [noise[:, 0]]
    for k in range(spec.chain.steps):
        x0 = teacher.denoise(states[-1], float(spec.chain.levels.t[k]), condition)
        a, b, s = (float(v[k]) for v in (spec.chain.a, spec.chain.b, spec.chain.s))
        states.append(a * states[-1] + b * x0 + s * noise[:, k + 1])
    return torch.stack(states, 1), noise[:, 1:], condition


def batch_of(teacher: Denoiser, spec: PathSpec, n: int, step: int = 0) -> PathBatch:
    """The first ``n`` cached paths as a training batch."""
    states, z, condition = fine_paths(teacher, spec, n)
    return PathBatch(
        states[:, torch.as_tensor(np.asarray(spec.grid))], features_of(spec, z), condition, step
    )
