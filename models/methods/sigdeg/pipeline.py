"""Sig-DEG students as diffusers pipelines. A copy of this file travels in the student's folder
(models/methods/student_pipeline.py), so it imports nothing else of this project.

One coarse step from state Y_i, with standard normals xi_i (the partial signature of the step's
Brownian path) and the denoised images of earlier steps D_{i-1}, D_{i-2}, ..:

    X     = a_i Y_i + b_i sum_j p_ij D_{i-j} + m_i . xi_i       the state the network is given  (6)
    D_i   = to_x0(network([X, xi_i, D_{i-1}?, width_i], t_i))   one network call
    Dbar  = D_i + sum_j q_ij (D_i - D_{i-j})                    path average, by extrapolation  (7)
    Y_i+1 = A_i Y_i + B_i Dbar + n_i . xi_i                     exact given Dbar                (3)

Scale-wise students take their first steps at a smaller size, on the low-pass part L Y of the state,
and simulate the high-pass part of the noise, N, along the same Brownian path beside it:

    Y = L'y + H (alpha D + N),   N_0 = Y_0,   N_i+1 = A_i N_i + n_i . xi_i,   H = 1 - L'L       (6a)

A student trained with the energy score has one more standard normal, e, in the last row of xi_i: an
input of the network for what the path does beyond its partial signature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor

from models.methods.student_pipeline import Generators, OnStep, StudentPipeline, normals


@dataclass(frozen=True)
class Step:
    """Coefficients of one coarse step, see the module's head.

    ``t``: the time given to the network, with its ``alpha`` and ``sigma``; ``a``, ``b``, ``m``:
    (6), ``m`` and ``n`` have one entry per feature; ``predict`` and ``mix``: weights p, q by age;
    ``width``: half-log-SNR covered by the step, over 4; ``kept``: 1 for features that exist on this
    interval, 0 for dropped ones. A student trained with the energy score has one entry more, for e:
    0 in ``m`` and ``n``, 1 in ``kept``.

    Of scale-wise students: ``reduction``, how many times smaller than the full size the step's
    state is; ``t``, ``alpha`` and ``sigma`` are those of the small image then, whose network is
    given ``scale`` times the state; ``signal``: alpha of the state where the step ends.
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
    reduction: int = 1
    scale: float = 1.0
    signal: float = 1.0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Step:
        """Inverse of ``dataclasses.asdict`` after a trip through JSON."""
        plain: dict[str, Any] = {
            f.name: tuple(v) if isinstance(v := values[f.name], list) else v
            for f in fields(cls)
            if f.name in values
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
    """Channels [X, xi_0 .. xi_m, D_{i-1} if ``memory``, width]: (n, C (m + 2 [+ 1]) + 1, ...)."""
    kept = torch.tensor(step.kept, dtype=xi.dtype, device=xi.device)
    kept = kept.view(1, -1, *[1] * (xi.dim() - 2))
    parts = [X, (xi * kept).flatten(1, 2)]
    if memory:
        parts.append(history[0] if history else mean.expand_as(X))
    parts.append(torch.full_like(X[:, :1], step.width))
    return torch.cat(parts, 1)


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


def reduced(x: Tensor, factor: int) -> Tensor:
    """L x: sums over blocks of f x f, over f = ``factor``: (..., H, W) -> (..., H / f, W / f).

    The rows of L are orthonormal, so white noise stays white; of images it is f times the mean.
    """
    if factor == 1:
        return x
    blocks = x.unflatten(-1, (-1, factor)).unflatten(-3, (-1, factor))
    return blocks.sum((-3, -1)) / factor


def enlarged(x: Tensor, factor: int) -> Tensor:
    """L' x, the inverse of :func:`reduced` without high frequencies."""
    return x.repeat_interleave(factor, -1).repeat_interleave(factor, -2) / factor


def details(x: Tensor, factor: int) -> Tensor:
    """H x = x - L'L x: what :func:`reduced` does not see."""
    return x - enlarged(reduced(x, factor), factor)


def lifted(D: Tensor, factor: int) -> Tensor:
    """A denoised image at full size: its own low-pass part, details by bicubic enlargement."""
    if factor == 1:
        return D
    guess = F.interpolate(D, scale_factor=float(factor), mode="bicubic") / factor
    return enlarged(D, factor) + details(guess, factor)


Denoise = Callable[[Step, Tensor, Tensor, Sequence[Tensor]], Tensor]


def coarse_step(
    denoise: Denoise,
    step: Step,
    Y: Tensor,
    noise: Tensor,
    xi: Tensor,
    history: Sequence[Tensor],
    mean: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """(Y_{i+1}, N_{i+1}, D_i) at full size from Y_i, N_i of (6a), xi_i and earlier D, newest first.

    ``denoise(step, X, xi_i, history)`` is the network call, with all of them at the step's size. N
    is not moved where the step has the full size: nothing asks for it any more.
    """
    factor = step.reduction
    z, past = reduced(xi, factor), [reduced(D, factor) for D in history]
    y = reduced(Y, factor)
    D = denoise(step, query_state(step, y, z, past, reduced(mean, factor)), z, past)
    y = next_state(step, y, path_average(step, D, past), z)
    if factor == 1:
        return y, noise, D
    D, noise = lifted(D, factor), step.A * noise + combine(step.n, xi)
    return enlarged(y, factor) + details(step.signal * D + noise, factor), noise, D


def rollout(
    denoise: Denoise,
    steps: Sequence[Step],
    Y: Tensor,
    xi: Tensor,
    mean: Tensor,
    on_step: OnStep | None = None,
) -> Tensor:
    """All states (n, N + 1, C, H, W) from Y (n, C, H, W) along xi (n, N, m + 1, C, H, W), at full
    size; ``denoise`` as in :func:`coarse_step`.
    """
    states: list[Tensor] = [Y]
    history: list[Tensor] = []
    noise = Y
    for i, step in enumerate(steps):
        Y, noise, D = coarse_step(denoise, step, Y, noise, xi[:, i], history, mean)
        history.insert(0, D)
        states.append(Y)
        if on_step is not None:
            on_step()
    return torch.stack(states, 1)


class SigDEGPipeline(StudentPipeline, DiffusionPipeline):  # type: ignore[misc]
    """Samples of a Sig-DEG student.

    ``plans``: {number of steps: list of steps as dicts}; ``plain_plans``: the same before
    calibration, for the untrained form; ``prediction_type``: the network's parametrization;
    ``mean_image``: nested list that broadcasts to (C, H, W); ``memory``: D_{i-1} is an input;
    ``clip``: bound on D or None. ``frozen`` is the teacher's network where steps with
    sigma / alpha above ``conditioning_limit`` damp the student's correction. ``inputs``: signature,
    width, or none where the network is given the state alone; then ``scheduler_config`` is that of
    the SigDEGScheduler that samples it in a stock pipeline. ``scaling``: of series,
    and of images whose states are scaled.
    """

    title = "Sig-DEG"
    path_features = "signature"
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
        plain_plans: dict[str, list[dict[str, Any]]] | None = None,
        inputs: str = "signature",
        scheduler_config: dict[str, Any] | None = None,
        scaling: dict[str, list[float]] | None = None,
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
            plain_plans=plain_plans,
            inputs=inputs,
            scheduler_config=scheduler_config,
            scaling=scaling,
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
        return self._plans[self.check_steps(steps)]

    def set_plan(self, nfe: int, steps: Sequence[Step]) -> None:
        """Put another plan in the place of the one for ``nfe`` steps; ``save_pretrained`` keeps
        it.
        """
        self._plans[nfe] = list(steps)
        self.register_to_config(plans=steps_as_dicts(self._plans))

    def untrained(self, network: Any) -> Any:
        """The plain integrator, neither calibrated nor trained, around the teacher's network with
        as many input channels as the student's.
        """
        plans = self.config.plain_plans or self.config.plans
        return self.with_network(network, plans=plans)

    def stock_sampler(self) -> dict[str, Any]:
        """SigDEGScheduler's, where the network takes the state alone."""
        settings = self.config.scheduler_config
        if self.config.inputs != "none":
            raise ValueError(
                f"its network takes more than the state (method.inputs: {self.config.inputs}), "
                "which stock pipelines do not hand over; expected one trained with inputs: none"
            )
        if settings is None:
            raise ValueError(
                "it is scale-wise (method.scales), and SigDEGScheduler's steps keep their size"
                if any(s.reduction > 1 for steps in self._plans.values() for s in steps)
                else "no scheduler of a stock pipeline steps its variance exploding states"
                if self.config.prediction_type == "ve"
                else "its teacher has no scheduler of diffusers"
            )
        return {"scheduler": "SigDEGScheduler", "config": dict(settings)}

    def network_calls(self, steps: int) -> int:
        """Network evaluations of one sample with ``steps`` steps, the frozen network's included."""
        return steps + sum(self._damped(step) for step in self.plan(steps))

    def _damped(self, step: Step) -> bool:
        limit = self.config.conditioning_limit
        return self.frozen is not None and limit is not None and step.sigma > limit * step.alpha

    def _mean(self, like: Tensor, factor: int = 1) -> Tensor:
        mean = torch.as_tensor(self.config.mean_image, dtype=like.dtype, device=like.device)
        return reduced(mean.expand(1, *self.config.shape), factor) / factor

    def denoise(
        self,
        step: Step,
        X: Tensor,
        xi: Tensor,
        history: Sequence[Tensor],
        condition: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """D_i: (n, C, H, W) at the step's size; the student's correction damped where x0 would
        amplify it. The network sees a small image at its own noise level and in its own units.
        """
        factor = step.reduction
        X = X if factor == 1 else step.scale * X
        inputs = X
        if self.config.inputs != "none":
            last, mean = [D / factor for D in history[:1]], self._mean(X, factor)
            inputs = network_input(step, X, xi, last, mean, self.config.memory)
        D = self.network_x0(self.unet, inputs, X, step, condition)
        if self._damped(step):
            base = self.network_x0(self.frozen, X, X, step, condition)
            D = base + (self.config.conditioning_limit * step.alpha / step.sigma) * (D - base)
        return factor * self.clipped(D)

    @torch.no_grad()
    def rollout(
        self,
        noise: Tensor,
        xi: Tensor | None = None,
        condition: Mapping[str, Tensor] | None = None,
        nfe: int | None = None,
        generator: Generators = None,
        on_step: OnStep | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(x0, states): (n, C, H, W) and (n, N + 1, C, H, W) from start noise; ``xi`` (n, N, m + 1,
        C, H, W) or fresh. e, where the student has it and ``xi`` does not, is always fresh.
        """
        steps = self.plan(nfe)
        missing = len(steps[0].n) - (0 if xi is None else xi.shape[2])
        if xi is None or missing:
            shape = (len(noise), len(steps), missing, *noise.shape[1:])
            fresh = normals(shape, noise.device, generator)
            xi = fresh if xi is None else torch.cat([xi, fresh], 2)
        states = rollout(
            lambda s, X, z, h: self.denoise(s, X, z, h, condition),
            steps,
            noise,
            xi,
            self._mean(noise),
            on_step,
        )
        return states[:, -1], states


def steps_as_dicts(plans: Mapping[int, Sequence[Step]]) -> dict[str, list[dict[str, Any]]]:
    """Plans in the JSON form that the pipeline's config keeps."""
    return {str(n): [asdict(s) for s in steps] for n, steps in plans.items()}
