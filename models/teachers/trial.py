"""Whether an opened teacher can be used at all, asked before anything is made of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from models.common.errors import InputError
from models.teachers.base import Denoiser


def check_whole(parts: dict[str, Any], source: str) -> None:
    """InputError if the weight file of a pipeline's part lacks weights that its config asks for:
    diffusers leaves them without values.
    """
    for part, network in parts.items():
        if not isinstance(network, nn.Module):
            continue
        missing = [name for name, value in network.named_parameters() if value.is_meta]
        if missing:
            raise InputError(
                f"teacher {source}: {part}'s weights lack {missing[0]} and {len(missing) - 1} "
                "others; expected all that its config.json asks for; fetch or save the folder again"
            )


@torch.no_grad()
def check_it_runs(teacher: Denoiser) -> None:
    """InputError unless all weights are finite, and so is the network's answer, of the state's
    shape, at its first and last time.

    Networks of prompts are not called: their conditions are encoded later.
    """
    kind = type(teacher.network).__name__
    for part in (teacher.network, teacher.codec):
        for name, value in part.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise InputError(
                    f"teacher's {kind}: {name} holds NaN or infinity; its training went wrong or "
                    "its file is damaged: take another checkpoint"
                )
    if teacher.condition_kind == "prompts":
        return
    x = torch.randn(1, *teacher.shape, generator=torch.Generator().manual_seed(0))
    condition = teacher.default_condition(1)
    for t in teacher.schedule.levels(teacher.schedule.train_steps).t[[0, -1]]:
        try:
            answer = teacher.output(x.to(teacher.device), float(t), condition)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InputError(
                f"teacher's {kind} does not run on states of {teacher.shape} ({reason}); expected "
                "a size that its blocks can halve and double again, as it was trained with"
            ) from error
        if answer.shape != x.shape or not answer.isfinite().all():
            what = "NaN or infinity" if answer.shape == x.shape else f"{tuple(answer.shape[1:])}"
            raise InputError(
                f"teacher's {kind} gives {what} at time {t:g} for states of {teacher.shape}; "
                "expected finite predictions of the same shape at every time of its scheduler"
            )
