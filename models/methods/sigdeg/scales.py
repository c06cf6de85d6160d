"""Scale-wise Sig-DEG: the first steps at smaller sizes (docs/methods.md, "Sig-DEG: scale-wise").

With L the low-pass part of an image (:func:`models.methods.sigdeg.pipeline.reduced`) and m its mean
over blocks of f x f pixels, L x0 = f m, and

    L x = alpha f m + sigma L eps,    L eps ~ N(0, I)                                           (6b)

is the forward process of the small image at f^2 times the signal-to-noise ratio. So a coarse step
on L x has the chain, the signature and the coefficients of the full size; only the network is asked
at another time, that of the small image, and given c L x with c = alpha' / (f alpha).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.common.errors import InputError
from models.common.random import generator_for
from models.methods.base import MethodContext
from models.methods.sigdeg.config import SigDEGConfig
from models.methods.sigdeg.pipeline import Step, reduced
from models.sampling.grids import subgrid
from models.sampling.trajectories import PathSpec, path_condition, path_labels
from models.teachers.base import Denoiser

BATCH = 64
# How far a wanted alpha / sigma and that of the teacher's nearest level may be apart: by a part of
# it, and by a bit of alpha where all is noise.
KNOWN, PURE = 0.2, 0.01


def at_scales(
    steps: Sequence[Step], spec: PathSpec, config: SigDEGConfig, teacher: Denoiser
) -> list[Step]:
    """The plan with its first steps at the sizes of ``config.scales``; as it is where there are
    none.

    Raises InputError for sizes that the teacher's states or this number of steps do not allow.
    """
    pairs = config.scales.pairs
    if not pairs:
        return list(steps)
    check_sizes([size for _, size in pairs], teacher)
    grid = subgrid(spec.grid, len(steps))
    alpha, sigma = spec.chain.levels.alpha[grid], spec.chain.levels.sigma[grid]
    level = (sigma / (alpha + sigma))[:-1]  # of flow matching, where each step starts
    sizes = [[size for limit, size in pairs if limit >= at][-1] for at in level]
    full = teacher.shape[1]
    if sizes[-1] != full:
        raise InputError(
            f"method.scales.pairs: the last of {len(steps)} steps starts at sigma "
            f"{level[-1]:.3f}, so that none has the full size; expected the last pair's sigma, "
            f"{pairs[-1][0]}, to be that or more"
        )
    return [
        at_size(step, full // size, float(end), teacher)
        for step, size, end in zip(steps, sizes, alpha[1:], strict=True)
    ]


def check_sizes(sizes: Sequence[int], teacher: Denoiser) -> None:
    """InputError unless the sizes are nested, end at the teacher's own, and are its network's."""
    shape, key = teacher.shape, "method.scales.pairs"
    if len(shape) != 3 or shape[1] != shape[2]:
        raise InputError(f"{key}: states are {shape}; expected square images, or no pairs")
    if teacher.codec.latent:
        raise InputError(
            f"{key}: this teacher works on latents, and a latent reduced is not the latent of the "
            "reduced image; expected a teacher of pixels, or no pairs"
        )
    if sizes[-1] != shape[1]:
        raise InputError(f"{key}: last size is {sizes[-1]}; expected {shape[1]}, the teacher's own")
    if bad := [size for size in sizes if size % teacher.stride]:
        raise InputError(
            f"{key}: size {bad[0]}; expected a multiple of {teacher.stride}, the network's stride"
        )
    for small, large in itertools.pairwise(sizes):
        if large % small:
            raise InputError(
                f"{key}: size {small} before {large}; expected one that divides it, since a "
                "low-pass part is made of blocks"
            )


def at_size(step: Step, factor: int, signal: float, teacher: Denoiser) -> Step:
    """The step on the low-pass part by ``factor``; ``signal``: alpha where the step ends.

    Raises InputError where the teacher has no noise level near the small image's.
    """
    if factor == 1:
        return step
    ratio = factor * step.alpha / step.sigma
    t = teacher.schedule.time_of_snr(ratio**2)
    alpha, sigma = teacher.schedule.level(t)
    if abs(alpha - ratio * sigma) > KNOWN * ratio * sigma + PURE:
        raise InputError(
            f"method.scales.pairs: a step at alpha / sigma = {ratio:.3g} of the small image; the "
            f"teacher's nearest level has {alpha / sigma:.3g}; expected a larger last sigma"
        )
    # equal ratios alpha' / (f alpha) = sigma' / sigma; their mean also where one of them is 0 / 0
    scale = (alpha + sigma) / (factor * step.alpha + step.sigma)
    return replace(
        step,
        t=float(t),
        alpha=alpha,
        sigma=sigma,
        reduction=factor,
        scale=scale,
        signal=signal,
    )


def over_sizes(
    steps: Sequence[Step],
    weights: Tensor,
    loss: Callable[..., Tensor],
    *paths: Tensor,
) -> Tensor:
    """``loss(*paths, weights)`` of states (n, L, C, H, W) after ``steps``, each compared at its
    step's size: the mean over runs of steps of one size, by their lengths.
    """
    if all(step.reduction == 1 for step in steps):
        return loss(*paths, weights)
    parts = []
    for factor, run in itertools.groupby(range(len(steps)), lambda i: steps[i].reduction):
        rows = list(run)
        part = slice(rows[0], rows[-1] + 1)
        value = loss(*(reduced(path[:, part], factor) for path in paths), weights[part])
        parts.append(len(rows) / len(steps) * value)
    return torch.stack(parts).sum()


@torch.no_grad()
def small_size_errors(
    context: MethodContext, plans: Mapping[int, Sequence[Step]], spec: PathSpec
) -> list[dict[str, Any]]:
    """The teacher's squared error on small images beside that of its full-size answer, reduced, at
    every level where a plan asks at a small size; on its own images, as JSON.

    An exact teacher's ratio is at least 1, since the small image says less, and little more where
    the noise hides the details. Raises InputError where it exceeds `method.scales.limit`: the
    teacher does not know that size.
    """
    assert context.tools is not None, "the check needs the teacher's images"
    x0 = context.tools.teacher_states(context.config.scales.samples)
    found: dict[tuple[int, float], dict[str, Any]] = {}
    for step in (step for steps in plans.values() for step in steps if step.reduction > 1):
        if (step.reduction, step.t) not in found:
            found[step.reduction, step.t] = _errors(context, spec, step, x0)
    limit = context.config.scales.limit
    for row in found.values():
        if not row["small"] <= limit * row["full"]:
            raise InputError(
                f"method.scales.pairs: at size {row['size']}, sigma {row['sigma']:.3f}, "
                f"the teacher's error is {row['small'] / row['full']:.1f} times that at full size, "
                f"above method.scales.limit = {limit}: it does not know this size; leave it out, "
                "or train the teacher at it (teacher.scales)"
            )
    return list(found.values())


def _errors(context: MethodContext, spec: PathSpec, step: Step, x0: Tensor) -> dict[str, Any]:
    teacher, factor = context.teacher, step.reduction
    ratio = step.alpha / step.sigma / factor  # of the large image
    t = teacher.schedule.time_of_snr(ratio**2)
    alpha, sigma = teacher.schedule.level(t)
    eps = torch.randn(x0.shape, generator=generator_for("cpu", context.seed, 29))
    small = full = 0.0
    for low in range(0, len(x0), BATCH):
        rows = range(low, min(low + BATCH, len(x0)))
        labels = path_labels(spec, teacher, rows, "validation")
        condition = path_condition(teacher, labels)
        clean = x0[low : rows.stop].to(teacher.device)
        x = alpha * clean + sigma * eps[low : rows.stop].to(teacher.device)
        wanted = reduced(clean, factor)
        own = factor * teacher.denoise(step.scale * reduced(x, factor), step.t, condition)
        small += float((own - wanted).square().sum())
        full += float((reduced(teacher.denoise(x, t, condition), factor) - wanted).square().sum())
    entries = x0.numel() / factor**2
    level = step.sigma / (step.alpha + step.sigma)  # of flow matching, of the small image
    errors = {"small": small / entries, "full": full / entries}
    return {"size": teacher.shape[1] // factor, "sigma": level} | errors
