"""Sig-DEG students as diffusers pipelines. This file is self-contained: a copy of it travels in the
student's folder as ``pipeline.py``, where ``DiffusionPipeline.from_pretrained(folder,
custom_pipeline=folder, trust_remote_code=True)`` finds it.

One coarse step from state Y_i, with standard normals xi_i (the partial signature of the step's
Brownian path) and the denoised images of earlier steps D_{i-1}, D_{i-2}, ..:

    X     = a_i Y_i + b_i sum_j p_ij D_{i-j} + m_i . xi_i        where on the path the network is
    asked  (6)
    D_i   = to_x0(network([X, xi_i, D_{i-1}?, width_i], t_i))    one network call
    Dbar  = D_i + sum_j q_ij (D_i - D_{i-j})                     the path average, by extrapolation
     (7)
    Y_i+1 = A_i Y_i + B_i Dbar + n_i . xi_i                      exact given Dbar  (3)
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """Coefficients of one coarse step, see the module's head.

    ``t``: the time given to the network, with its ``alpha`` and ``sigma``; ``a``, ``b``, ``m``:
    (6), ``m`` and ``n`` have one entry per feature; ``predict`` and ``mix``: weights p, q by age;
    ``width``: half-log-SNR covered by the step, over 4; ``kept``: 1 for features that exist on this
    interval, 0 for dropped ones; ``last``: the step ends at clean data.
    """

    t: float
    alpha: float
    sigma: float
    a: float
    b: float
    m: tuple[float, ...]
    predict: tuple[float, ...]
    A: float
    B: float
    n: tuple[float, ...]
    mix: tuple[float, ...]
    width: float
    kept: tuple[float, ...]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Step:
        """Inverse of ``dataclasses.asdict`` after a trip through JSON."""
        plain: dict[str, Any] = {
            f.name: tuple(v) if isinstance(v := values[f.name], list) else v for f in fields(cls)
        }
        return cls(**plain)


def combine(weights: Sequence[float], xi: Tensor) -> Tensor:
    """sum_p weights[p] xi[:, p]: (n, m + 1, C, H, W) -> (n, C, H, W)."""
    row = torch.tensor(weights, dtype=xi.dtype, device=xi.device)
    total: Tensor = torch.tensordot(xi, row, dims=([1], [0]))
    return total


def query_state(
    step: Step, Y: Tensor, xi: Tensor, history: Sequence[Tensor], mean: Tensor
) -> Tensor:
    """X of (6). ``history``: earlier D, newest first; before there is any, ``mean``, the teacher's
    mean image, stands in.
    """
    if step.b == 0.0 and not any(step.m):
        return step.a * Y
    guess = mean
    if history:
        guess = sum(
            (p * D for p, D in zip(step.predict, history, strict=False)), torch.zeros_like(Y)
        )
    return step.a * Y + step.b * guess + combine(step.m, xi)


def network_input(
    step: Step, X: Tensor, xi: Tensor, history: Sequence[Tensor], mean: Tensor, memory: bool
) -> Tensor:
    """Channels [X, xi_0 .. xi_m, D_{i-1} if ``memory``, width]: (n, C (m + 2 [+ 1]) + 1, H, W)."""
    kept = torch.tensor(step.kept, dtype=xi.dtype, device=xi.device).view(1, -1, 1, 1, 1)
    parts = [X, (xi * kept).flatten(1, 2)]
    if memory:
        parts.append(history[0] if history else mean.expand_as(X))
    parts.append(torch.full_like(X[:, :1], step.width))
    return torch.cat(parts, 1)


def prediction_to_x0(prediction: str, output: Tensor, X: Tensor, step: Step) -> Tensor:
    """x0 from the network's output in the teacher's parametrization."""
    if prediction == "epsilon":
        return (X - step.sigma * output) / step.alpha
    if prediction == "v_prediction":
        return step.alpha * X - step.sigma * output
    if prediction == "flow":
        return X - step.sigma * output
    return output


def path_average(step: Step, D: Tensor, history: Sequence[Tensor]) -> Tensor:
    """Dbar of (7)."""
    out = D
    for weight, earlier in zip(step.mix, history, strict=False):
        if weight:
            out = out + weight * (D - earlier)
    return out


def next_state(step: Step, Y: Tensor, Dbar: Tensor, xi: Tensor) -> Tensor:
    """Y_{i+1} of (3)."""
    return step.A * Y + step.B * Dbar + combine(step.n, xi)


Denoise = Callable[[Step, Tensor, Tensor, Sequence[Tensor]], Tensor]


def rollout(denoise: Denoise, steps: Sequence[Step], Y: Tensor, xi: Tensor, mean: Tensor) -> Tensor:
    """All states (n, N + 1, C, H, W) from Y (n, C, H, W) along xi (n, N, m + 1, C, H, W).

    ``denoise(step, X, xi_i, history)`` is the network call and returns D_i.
    """
    states: list[Tensor] = [Y]
    history: list[Tensor] = []
    for i, step in enumerate(steps):
        D = denoise(step, query_state(step, Y, xi[:, i], history, mean), xi[:, i], history)
        Y = next_state(step, Y, path_average(step, D, history), xi[:, i])
        history.insert(0, D)
        states.append(Y)
    return torch.stack(states, 1)


class StudentOutput(BaseOutput):  # type: ignore[misc]
    """``images``: see the pipeline's ``output_type``."""

    images: Any


class SigDEGPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Samples of a Sig-DEG student.

    ``plans``: {number of steps: list of steps as dicts}; ``prediction``: the network's
    parametrization; ``mean_image``: nested list that broadcasts to (C, H, W); ``memory``: D_{i-1}
    is an input; ``clip``: bound on D or None. ``frozen`` is the teacher's network where steps with
    sigma / alpha above ``conditioning_limit`` damp the student's correction.
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components = ["vae", "frozen"]  # noqa: RUF012

    def __init__(
        self,
        unet: Any,
        plans: dict[str, list[dict[str, Any]]] | None = None,
        prediction_type: str = "epsilon",
        shape: list[int] | None = None,
        mean_image: Any = 0.0,
        memory: bool = False,
        clip: float | None = None,
        conditioning_limit: float | None = None,
        num_classes: int | None = None,
        vae: Any = None,
        frozen: Any = None,
    ):
        super().__init__()
        self.register_modules(unet=unet, vae=vae, frozen=frozen)
        self.register_to_config(
            plans=plans,
            prediction_type=prediction_type,
            shape=list(shape or (1, 16, 16)),
            mean_image=mean_image,
            memory=memory,
            clip=clip,
            conditioning_limit=conditioning_limit,
            num_classes=num_classes,
        )
        self._plans = {
            int(k): [Step.from_dict(s) for s in steps] for k, steps in (plans or {}).items()
        }

    @property
    def nfe(self) -> list[int]:
        """Numbers of steps this student was made for, ascending."""
        return sorted(self._plans)

    def plan(self, steps: int | None = None) -> list[Step]:
        """The steps of one schedule; the longest where ``steps`` is None. Raises ValueError for
        another number.
        """
        steps = max(self._plans) if steps is None else steps
        if steps not in self._plans:
            raise ValueError(
                f"num_inference_steps = {steps}: this student has {self.nfe}; distil one for "
                f"{steps} steps"
            )
        return self._plans[steps]

    def set_plan(self, nfe: int, steps: Sequence[Step]) -> None:
        """Put another plan in the place of the one for ``nfe`` steps; ``save_pretrained`` keeps
        it.
        """
        self._plans[nfe] = list(steps)
        self.register_to_config(plans=steps_as_dicts(self._plans))

    def network_calls(self, steps: int) -> int:
        """Network evaluations of one sample with ``steps`` steps, the frozen network's included."""
        limit = self.config.conditioning_limit
        extra = (
            0
            if self.frozen is None or limit is None
            else sum(s.sigma > limit * s.alpha for s in self.plan(steps))
        )
        return steps + extra

    def _mean(self, like: Tensor) -> Tensor:
        return torch.as_tensor(
            self.config.mean_image, dtype=like.dtype, device=like.device
        ).expand_as(like[:1])

    def denoise(
        self,
        step: Step,
        X: Tensor,
        xi: Tensor,
        history: Sequence[Tensor],
        condition: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """D_i: (n, C, H, W); the student's correction damped where x0 would amplify it."""
        inputs = network_input(step, X, xi, history, self._mean(X), self.config.memory)
        D = self._x0(self.unet, inputs, X, step, condition)
        limit = self.config.conditioning_limit
        if self.frozen is not None and limit is not None and step.sigma > limit * step.alpha:
            base = self._x0(self.frozen, X, X, step, condition)
            D = base + (limit * step.alpha / step.sigma) * (D - base)
        return D if self.config.clip is None else D.clamp(-self.config.clip, self.config.clip)

    def _x0(
        self,
        network: Any,
        inputs: Tensor,
        X: Tensor,
        step: Step,
        condition: Mapping[str, Tensor] | None,
    ) -> Tensor:
        t = torch.full((len(X),), step.t, device=X.device)
        t = t if self.config.prediction_type == "flow" else t.long()
        options = {} if condition is None else condition
        output = network(inputs.to(network.dtype), t, **options, return_dict=False)[0]
        return prediction_to_x0(
            self.config.prediction_type, output[:, : X.shape[1]].to(X.dtype), X, step
        )

    @torch.no_grad()
    def rollout(
        self,
        noise: Tensor,
        xi: Tensor | None = None,
        condition: Mapping[str, Tensor] | None = None,
        nfe: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(x0, states): (n, C, H, W) and (n, N + 1, C, H, W) from start noise; ``xi`` (n, N, m + 1,
        C, H, W) or fresh.
        """
        steps = self.plan(nfe)
        if xi is None:
            xi = _randn(
                (len(noise), len(steps), len(steps[0].n), *noise.shape[1:]), noise, generator
            )
        states = rollout(
            lambda s, X, z, h: self.denoise(s, X, z, h, condition),
            steps,
            noise,
            xi,
            self._mean(noise),
        )
        return states[:, -1], states

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
        float32 in [-1, 1]. Raises ValueError for a number of steps the student was not made for,
        missing or unknown classes, and other output types.
        """
        self.plan(num_inference_steps)
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type {output_type!r}: expected pil, np or pt")
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: expected at least 1")
        device = self._execution_device
        condition = self._condition(class_labels, batch_size, device)
        like = torch.empty(0, device=device, dtype=torch.float32)
        noise = _randn((batch_size, *self.config.shape), like, generator)
        x0, _ = self.rollout(noise, None, condition, num_inference_steps, generator)
        if self.vae is not None:
            x0 = self.vae.decode(x0 / self.vae.config.scaling_factor).sample
        images: Any = x0.float().clamp(-1, 1)
        if output_type != "pt":
            array = np.asarray(((images + 1) / 2).permute(0, 2, 3, 1).cpu())
            images = array if output_type == "np" else self.numpy_to_pil(array)
        return StudentOutput(images=images) if return_dict else (images,)

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


def save_student(pipeline: Any, folder: Path) -> None:
    """Write the pipeline folder: weights as safetensors, model_index.json and the class's own file
    as pipeline.py.

    The networks forget where they were read from, so that the bytes are the same wherever the
    project lies.
    """
    for part in pipeline.components.values():
        if "_name_or_path" in getattr(part, "config", ()):
            part.register_to_config(_name_or_path="")
    pipeline.save_pretrained(folder, safe_serialization=True)
    shutil.copyfile(inspect.getfile(type(pipeline)), folder / "pipeline.py")
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)


def load_student(
    folder: Path, device: torch.device | str = "cpu", kind: Any = SigDEGPipeline
) -> Any:
    """Open a student folder with the pipeline class ``kind``; raises ValueError if it is not
    one.
    """
    if not (Path(folder) / "model_index.json").is_file():
        raise ValueError(
            f"student {folder}: no model_index.json; expected a folder written by the student stage"
        )
    pipeline = kind.from_pretrained(str(folder), use_safetensors=True)
    pipeline.to(device)
    return pipeline


def steps_as_dicts(plans: dict[int, list[Step]]) -> dict[str, list[dict[str, Any]]]:
    """Plans in the JSON form that the pipeline's config keeps."""
    return {str(n): [asdict(s) for s in steps] for n, steps in plans.items()}
