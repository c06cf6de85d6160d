"""An evaluation of series where every answer is known: AR(1) paths, their exact denoiser, a student
that draws from the law and an untrained one that does not.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from models.evaluation.series.gaussian_laws import ar1_law
from models.teachers.base import Denoiser
from models.teachers.codec import ScaledCodec
from models.teachers.reading import read_schedule
from tasks.config.evaluation import Evaluation, NoFeatures
from tasks.evaluation.samplers import Inputs, Paths

N, LENGTH, CHANNELS, PHI, MEAN, STD = 200, 16, 2, 0.8, 5.0, 3.0
SHAPE = (CHANNELS, LENGTH)
LAW = ar1_law(LENGTH, PHI, STD * (1 - PHI**2) ** 0.5)  # about MEAN
ROOT = torch.linalg.cholesky(torch.from_numpy(LAW.covariance / STD**2)).float()  # of states

SERIES = Evaluation(
    features=NoFeatures(),
    metrics=("sig_w1", "marginal", "acf", "sig_mmd", "sig_mmd_p"),
    criterion="sig_w1",
    samples=150,
    bootstrap=60,
    batch_size=50,
    baselines=("ddim", "ddpm"),
)


class Exact(nn.Module):
    """E[x0 | x_t] of states N(0, S): alpha S (alpha^2 S + sigma^2)^-1 x."""

    def __init__(self, schedule: Any):
        super().__init__()
        self.schedule = schedule
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.schedule.level(float(t.flatten()[0]))
        covariance = (ROOT @ ROOT.T).to(x.dtype)
        unit = torch.eye(LENGTH, dtype=x.dtype)
        return alpha * x @ torch.linalg.solve(alpha**2 * covariance + sigma**2 * unit, covariance)


def exact_teacher() -> Denoiser:
    schedule, prediction, clip = read_schedule(
        DDPMScheduler(prediction_type="sample", clip_sample=False)
    )
    codec = ScaledCodec([MEAN] * CHANNELS, [STD] * CHANNELS)
    return Denoiser(
        Exact(schedule),
        schedule,
        shape=SHAPE,
        prediction_type=prediction,
        clip=clip,
        codec=codec,
    )


def sampler(scale: float, phi_root: Tensor = ROOT):  # type: ignore[no-untyped-def]
    """A rollout whose states are `scale` times paths of the law, from the start noise alone."""

    def rollout(noise, xi, condition, nfe, generator):  # type: ignore[no-untyped-def]
        clean = scale * noise @ phi_root.T
        ramp = torch.linspace(0, 1, nfe + 1).view(1, -1, 1, 1)
        states = noise[:, None] * (1 - ramp) + clean[:, None] * ramp
        return states[:, -1], states

    return rollout


def drawn(seed: int, n: int = N) -> Tensor:
    """Series of the law, in the data's units."""
    noise = torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return MEAN + STD * noise @ ROOT.T


def series_inputs(untrained: float = 0.6, law: bool = False) -> Inputs:
    noise = torch.randn(N, *SHAPE, generator=torch.Generator().manual_seed(9))
    _, states = sampler(1.0)(noise, None, None, 4, None)
    exact = type(LAW)(LAW.mean + MEAN, LAW.covariance) if law else None
    return Inputs(
        teacher=exact_teacher(),
        generators={"student": sampler(1.0), "untrained": sampler(untrained)},
        paths=Paths(noise, states, {n: torch.zeros(30, n, 2, *SHAPE) for n in (4, 2)}, None),
        real=drawn(1),
        other_real=drawn(2),
        nfe=(4, 2),
        steps=100,
        kind="series",
        channels=("price", "rate"),
        law=exact,
        titles={"student": "Student S", "untrained": "Untrained S"},
        lineage={"teacher fingerprint": "ab"},
    )
