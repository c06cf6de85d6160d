"""Coarse points for ``SigDEGScheduler``, measured on the pipeline that will use them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from models.sampling.grids import adaptive_grid
from models.schedulers.sigdeg_scheduler import SigDEGScheduler


def measure_points(
    pipe: Any, intervals: int = 20, chain_steps: int = 100, exponent: float = 0.25, **call: Any
) -> list[int]:
    """``points`` for ``coarse_grid="given"``: intervals + 1 fine indices that share out how far the
    denoised image moves along the chain (models.sampling.grids.adaptive_grid).

    Runs ``pipe(**call)`` once with ``chain_steps`` steps, so ``call`` names prompts, batch and
    generator as usual; 16 to 64 images are enough. Points for N also serve fewer steps.
    The pipeline's scheduler is put back.
    """
    before = pipe.scheduler
    scheduler = SigDEGScheduler.from_config(
        before.config, chain_steps=chain_steps, coarse_grid="index"
    )
    moved: list[float] = []
    earlier: list[Tensor] = []
    step = scheduler.step

    @functools.wraps(step)  # pipelines read the signature to see whether it takes a generator
    def recorded(output: Tensor, t: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
        result = step(output, t, sample, *args, **options)
        D = (result[1] if isinstance(result, tuple) else result.pred_original_sample).float()
        if earlier:
            moved.append(float((D - earlier.pop()).square().mean()))
        earlier.append(D)
        return result

    scheduler.step = recorded
    pipe.scheduler = scheduler
    try:
        with torch.no_grad():
            pipe(num_inference_steps=chain_steps, **call)
    finally:
        pipe.scheduler = before
    return [int(k) for k in adaptive_grid(torch.tensor(moved).numpy(), intervals)]
