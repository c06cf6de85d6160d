"""Scale-wise students (SwD) as diffusers pipelines. This file is self-contained: a copy of it
travels in the student's folder as ``pipeline.py``, where
``DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)`` finds
it.

Step i of N, at noise level (alpha_i, sigma_i) and size s_i, from x_1 ~ N(0, I) at s_1:

    x0      = to_x0(network(x_i, t_i))                                        one network call
    x_{i+1} = alpha_{i+1} up(x0, s_{i+1}) + sigma_{i+1} eps                   fresh noise, after
    upscaling
    (11)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor


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


def prediction_to_x0(prediction: str, output: Tensor, x: Tensor, step: ScaleStep) -> Tensor:
    """x0 from the network's output in the teacher's parametrization, damped where the step says
    so.
    """
    if prediction == "epsilon":
        x0 = (x - step.sigma * output) / step.alpha
    elif prediction == "v_prediction":
        x0 = step.alpha * x - step.sigma * output
    elif prediction == "flow":
        x0 = x - step.sigma * output
    else:
        x0 = output
    if step.damping == 1.0:
        return x0
    mean = torch.as_tensor(step.mean, dtype=x0.dtype, device=x0.device)
    return mean + step.damping * (x0 - mean)


class StudentOutput(BaseOutput):  # type: ignore[misc]
    """``images``: see the pipeline's ``output_type``."""

    images: Any


class SwDPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Samples of a scale-wise student.

    ``scale_schedule``: the steps as dicts; ``prediction``: the network's parametrization;
    ``shape``: (C, H, W) of the last step; ``clip``: bound on x0 or None; ``num_classes``: None for
    unconditional students.
    """

    model_cpu_offload_seq = "unet->vae"
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
    ):
        super().__init__()
        self.register_modules(unet=unet, vae=vae)
        self.register_to_config(
            scale_schedule=scale_schedule,
            prediction_type=prediction_type,
            shape=list(shape or (1, 16, 16)),
            clip=clip,
            num_classes=num_classes,
        )
        self.scale_schedule = [ScaleStep.from_dict(step) for step in scale_schedule or []]

    @property
    def nfe(self) -> list[int]:
        """Numbers of steps this student was made for: one."""
        return [len(self.scale_schedule)]

    def network_calls(self, steps: int) -> int:
        """Network evaluations of one sample with ``steps`` steps."""
        return steps

    def denoise(
        self, step: ScaleStep, x: Tensor, condition: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """x0 (n, C, s, s) from x at the level and size of ``step``."""
        t = torch.full((len(x),), step.t, device=x.device)
        t = t if self.config.prediction_type == "flow" else t.long()
        options = {} if condition is None else condition
        output = self.unet(x.to(self.unet.dtype), t, **options, return_dict=False)[0][
            :, : x.shape[1]
        ].to(x.dtype)
        x0 = prediction_to_x0(self.config.prediction_type, output, x, step)
        return x0 if self.config.clip is None else x0.clamp(-self.config.clip, self.config.clip)

    @torch.no_grad()
    def rollout(
        self,
        noise: Tensor,
        xi: Sequence[Tensor] | None = None,
        condition: Mapping[str, Tensor] | None = None,
        nfe: int | None = None,
        generator: torch.Generator | None = None,
        noise_first: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """(x0, the x0 of every step) from start noise (n, C, H, W), of which the corner s_1 x s_1
        is used.

        ``xi``: the noise of steps 2 .. N, or fresh. ``noise_first`` renoises before upscaling,
        which is wrong (the upscaled noise is no longer white) and there to show it.
        """
        self._check(nfe)
        first = self.scale_schedule[0]
        x0 = self.denoise(first, noise[..., : first.size, : first.size].contiguous(), condition)
        seen = [x0]
        for i, step in enumerate(self.scale_schedule[1:]):
            x0 = x0 if noise_first else upscale(x0, step.size)
            eps = _randn(x0.shape, x0, generator) if xi is None else xi[i]
            x0 = self.denoise(step, upscale(renoise(step, x0, eps), step.size), condition)
            seen.append(x0)
        return x0, seen

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        class_labels: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        progress: bool = False,
    ) -> Any:
        """Draw ``batch_size`` images.

        ``output_type``: "pil"; "np" for (n, H, W, C) float32 in [0, 1]; "pt" for (n, C, H, W)
        float32 in [-1, 1]. Raises ValueError for a number of steps the student was not made for, or
        missing or unknown classes.
        """
        self._check(num_inference_steps)
        device = self._execution_device
        condition = self._condition(class_labels, batch_size, device)
        channels, size = self.config.shape[0], self.scale_schedule[0].size
        like = torch.empty(0, device=device, dtype=torch.float32)
        noise = _randn((batch_size, channels, size, size), like, generator)
        x0, _ = self.rollout(noise, None, condition, num_inference_steps, generator)
        if self.vae is not None:
            x0 = self.vae.decode(x0 / self.vae.config.scaling_factor).sample
        images: Any = x0.float().clamp(-1, 1)
        if output_type != "pt":
            array = np.asarray(((images + 1) / 2).permute(0, 2, 3, 1).cpu())
            images = array if output_type == "np" else self.numpy_to_pil(array)
        return StudentOutput(images=images) if return_dict else (images,)

    def _check(self, steps: int | None) -> None:
        if steps is not None and steps not in self.nfe:
            raise ValueError(
                f"num_inference_steps = {steps}: this student has {self.nfe}; distil one for "
                f"{steps} steps"
            )

    def _condition(
        self, wanted: int | Sequence[int] | None, n: int, device: torch.device
    ) -> dict[str, Tensor] | None:
        classes = self.config.num_classes
        if classes is None:
            return None
        if wanted is None:
            raise ValueError(
                f"class_labels: this student is conditional; give a class 0..{classes - 1}, or "
                "one per image"
            )
        values = [int(wanted)] * n if isinstance(wanted, int) else [int(v) for v in wanted]
        if len(values) != n or not all(0 <= v < classes for v in values):
            raise ValueError(f"class_labels {values}: expected {n} classes in 0..{classes - 1}")
        return {"class_labels": torch.tensor(values, device=device)}


def _randn(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normals drawn where the generator lives, so that a CPU seed gives the same images on
    any device.
    """
    where = like.device if generator is None else generator.device
    return torch.randn(tuple(shape), generator=generator, device=where, dtype=torch.float32).to(
        like.device
    )
