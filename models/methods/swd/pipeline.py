"""Scale-wise students (SwD) as diffusers pipelines. A copy of this file travels in the student's
folder (models/methods/student_pipeline.py), so it imports nothing else of this project.

Step i of N, at noise level (alpha_i, sigma_i) and size s_i, from x_1 ~ N(0, I) at s_1:

    x0      = to_x0(network(x_i, t_i))                        one network call
    x_{i+1} = alpha_{i+1} up(x0, s_{i+1}) + sigma_{i+1} eps   fresh noise, after upscaling  (11)

``renoise: predicted`` (RMD, arXiv 2603.06136) carries the noise that the step has seen,
e = (x_i - alpha_i x0) / sigma_i, on to the next size. With A the reduction by area from s_{i+1} to
s_i, A^T its transpose and eps fresh, its noise is

    eps + A^T (A A^T)^{-1} ((A A^T)^{1/2} e - A eps),

white for white e: the part that A sees has covariance A A^T again, the rest is that of eps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor

from models.methods.student_pipeline import Generators, OnStep, StudentPipeline, normals


@dataclass(frozen=True)
class ScaleStep:
    """``t``: the time given to the network, with its ``alpha`` and ``sigma``; ``size``: height and
    width.

    ``damping`` < 1 pulls x0 to ``mean`` (nested list, (C, size, size)), where an error of an
    epsilon network would be amplified by sigma / alpha.
    """

    t: float
    alpha: float
    sigma: float
    size: int
    damping: float = 1.0
    mean: Any = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ScaleStep:
        """Inverse of ``dataclasses.asdict`` after a trip through JSON."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


def upscale(x0: Tensor, size: int) -> Tensor:
    """Bicubic (n, C, s, s) -> (n, C, size, size); nearest would alias."""
    if x0.shape[-1] == size:
        return x0
    return F.interpolate(x0, size=(size, size), mode="bicubic")


def renoise(step: ScaleStep, x0: Tensor, eps: Tensor) -> Tensor:
    """x at the level of ``step``; the shapes of x0 and eps agree."""
    return step.alpha * x0 + step.sigma * eps


@lru_cache(maxsize=32)
def area_weights(size: int, smaller: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the reduction A of one axis by area, ``size`` -> ``smaller``, float64: A (smaller, size),
    (A A^T)^{1/2} and (A A^T)^{-1} (smaller, smaller).
    """
    unit = torch.eye(size, dtype=torch.float64)[:, None]
    reduce = F.adaptive_avg_pool1d(unit, smaller)[:, 0].T.contiguous()
    values, vectors = torch.linalg.eigh(reduce @ reduce.T)
    root = vectors @ (values.sqrt()[:, None] * vectors.T)
    return reduce, root, vectors @ (vectors.T / values[:, None])


def carried_noise(noise: Tensor, fresh: Tensor) -> Tensor:
    """``noise`` (n, C, s, s) at the size of ``fresh`` (n, C, S, S), S >= s, both white, so that the
    result is white too; its part that size s can hold is that of ``noise``, the rest is fresh.
    """
    if noise.shape == fresh.shape:
        return noise
    reduce, root, inverse = (v.to(fresh) for v in area_weights(fresh.shape[-1], noise.shape[-1]))
    gap = root @ noise @ root - reduce @ fresh @ reduce.T
    back = reduce.T @ inverse
    return fresh + back @ gap @ back.T


def damped(step: ScaleStep, x0: Tensor) -> Tensor:
    """x0 pulled to the mean image where the step says so."""
    if step.damping == 1.0:
        return x0
    mean = torch.as_tensor(step.mean, dtype=x0.dtype, device=x0.device)
    return mean + step.damping * (x0 - mean)


class SwDPipeline(StudentPipeline, DiffusionPipeline):  # type: ignore[misc]
    """Samples of a scale-wise student.

    ``scale_schedule``: the steps as dicts; ``prediction_type``: the network's parametrization;
    ``shape``: (C, H, W) of the last step; ``clip``: bound on x0 or None; ``num_classes``: None for
    unconditional students; ``renoise``: fresh or predicted noise; ``scaling``: of images whose
    states are scaled.
    """

    title = "SwD"
    _optional_components = ["vae"]  # noqa: RUF012

    def __init__(
        self,
        unet: Any,
        scale_schedule: list[dict[str, Any]] | None = None,
        prediction_type: str = "epsilon",
        shape: list[int] | None = None,
        clip: float | None = None,
        num_classes: int | None = None,
        vae: Any = None,
        renoise: str = "fresh",
        scaling: dict[str, list[float]] | None = None,
    ):
        super().__init__()
        self.register_modules(unet=unet, vae=vae)
        self.register_to_config(
            scale_schedule=scale_schedule,
            prediction_type=prediction_type,
            shape=list(shape or (1, 16, 16)),
            clip=clip,
            num_classes=num_classes,
            renoise=renoise,
            scaling=scaling,
        )
        self.scale_schedule = [ScaleStep.from_dict(step) for step in scale_schedule or []]

    @property
    def nfe(self) -> list[int]:
        """Numbers of steps this student was made for: one."""
        return [len(self.scale_schedule)]

    def start_shape(self) -> tuple[int, ...]:
        """(C, s_1, s_1)."""
        size = self.scale_schedule[0].size
        return (self.config.shape[0], size, size)

    def controls(self) -> dict[str, tuple[str, Callable[..., Any]]]:
        """Noise before upscaling, which colours the noise."""
        wrong = partial(self.rollout, noise_first=True)
        return {"noise_first": ("Control: noise before upscaling", wrong)}

    def stock_sampler(self) -> dict[str, Any]:
        """FlowMatchLCMScheduler's step is (11) where levels are those of flow matching and latents
        keep their rows and columns.
        """
        steps, flow = self.scale_schedule, self.config.prediction_type == "flow"
        if self.config.renoise != "fresh":
            raise ValueError("FlowMatchLCMScheduler draws fresh noise, this student does not")
        if not flow or self.config.clip is not None or any(s.damping != 1.0 for s in steps):
            raise ValueError(
                "FlowMatchLCMScheduler, whose steps are SwD's, knows flow-matching models alone"
            )
        if type(self.unet).__name__ == "FluxTransformer2DModel":
            raise ValueError(
                "FluxPipeline keeps latents as lists of tokens, which FlowMatchLCMScheduler cannot "
                "enlarge"
            )
        first = steps[0]
        config = {"num_train_timesteps": round(first.t / first.sigma), "shift": 1.0}
        factors = [step.size / first.size for step in steps[1:]]
        return {
            "scheduler": "FlowMatchLCMScheduler",
            "config": {**config, "scale_factors": factors or None, "upscale_mode": "bicubic"},
            "sigmas": [step.sigma for step in steps],
            "start": [first.size, first.size],
        }

    def denoise(
        self, step: ScaleStep, x: Tensor, condition: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """x0 (n, C, s, s) from x at the level and size of ``step``."""
        return self.clipped(damped(step, self.network_x0(self.unet, x, x, step, condition)))

    def next_state(self, i: int, x: Tensor, x0: Tensor, fresh: Tensor) -> Tensor:
        """x_i of (11) from the step before: its input ``x``, its output ``x0`` (n, C, s, s) and
        white noise ``fresh`` (n, C, s_i, s_i); i >= 1.
        """
        before, step, eps = self.scale_schedule[i - 1], self.scale_schedule[i], fresh
        if self.config.renoise == "predicted":
            eps = carried_noise((x - before.alpha * x0) / before.sigma, fresh)
        return renoise(step, upscale(x0, step.size), eps)

    @torch.no_grad()
    def rollout(
        self,
        noise: Tensor,
        xi: Sequence[Tensor] | None = None,
        condition: Mapping[str, Tensor] | None = None,
        nfe: int | None = None,
        generator: Generators = None,
        on_step: OnStep | None = None,
        noise_first: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """(x0, the x0 of every step) from start noise (n, C, H, W), of which the corner s_1 x s_1
        is used.

        ``xi``: the noise of steps 2 .. N, or fresh. ``noise_first`` renoises before upscaling,
        which is wrong (the upscaled noise is no longer white) and there to show it.
        """
        self.check_steps(nfe)
        on_step = on_step or (lambda: None)
        first = self.scale_schedule[0]
        x = noise[..., : first.size, : first.size].contiguous()
        x0 = self.denoise(first, x, condition)
        seen = [x0]
        on_step()
        for i, step in enumerate(self.scale_schedule[1:], 1):
            size = x0.shape[-1] if noise_first else step.size
            shape = (*x0.shape[:2], size, size)
            eps = normals(shape, x0.device, generator) if xi is None else xi[i - 1]
            if noise_first:
                x = upscale(renoise(step, x0, eps), step.size)
            else:
                x = self.next_state(i, x, x0, eps)
            x0 = self.denoise(step, x, condition)
            seen.append(x0)
            on_step()
        return x0, seen
