"""One training loop for every method: a generator that yields after each optimizer step.

The caller owns logging, validation and checkpoints. Randomness is stateless: batch and noise of a
step are functions of (seed, step, micro-batch, role update, rank), so a run resumed from
``state_dict`` continues bit for bit on a CPU. Workers either have a rank and a copy of the networks
each, and average their gradients, or they share sharded networks and the micro-batches of a step
(models/training/sharding.py).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from models.common.precision import DTYPES
from models.common.random import generator_for
from models.methods.base import Trainable
from models.training.optimizers import set_rate
from models.training.sharding import Share, left_behind, whole
from models.training.state import LoopConfig as LoopConfig
from models.training.state import TrainState as TrainState

Batches = Callable[[int, int, int], Any]  # (step, micro, update) -> batch


class NonFiniteError(RuntimeError):
    """A loss or gradient became NaN or infinite; ``step`` is the step that was not applied."""

    def __init__(self, step: int, role: str, what: str):
        super().__init__(f"step {step}: {what} of {role} is not finite")
        self.step, self.role = step, role


@dataclass(frozen=True)
class StepReport:
    """What one step did: ``step`` counts finished steps; ``terms`` are means over micro-batches by
    role.
    """

    step: int
    learning_rate: float
    terms: dict[str, float]


def _average_gradients(parameters: list[nn.Parameter]) -> None:
    """Mean over the workers, in one collective; gradients of sharded weights are means already.

    A recurrent rollout uses every weight many times, so gradients are final only when the whole
    backward pass is: overlapping buckets, as DDP's hooks do, would have nothing to overlap with.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    if isinstance(parameters[0], DTensor):
        return
    flat = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters]
    )
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for p, g in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
        p.grad = g.view_as(p).clone()


@contextmanager
def _global_stream(device: torch.device, *key: int) -> Iterator[None]:
    """Dropout layers draw from torch's global generators: tie those to the step as well, for exact
    resume.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(generator_for("cpu", *key).initial_seed())
        yield


def _update(
    method: Trainable,
    state: TrainState,
    role: str,
    update: int,
    batches: Batches,
    device: torch.device,
    rank: int,
    share: Share,
) -> dict[str, float]:
    """One optimizer update of one role; returns its logged terms."""
    config, optimizer = state.config, state.optimizers[role]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    seen: dict[str, list[Tensor]] = defaultdict(list)
    half = config.precision != "float32"
    mine = share.of(config.accumulate)
    for micro in mine:
        noise = generator_for(device, config.seed, state.step, micro, update, rank)
        dropout = (config.seed, state.step, micro, update, rank, 1)
        with (
            _global_stream(device, *dropout),
            torch.autocast(device.type, DTYPES[config.precision], enabled=half),
        ):
            loss, logged = method.loss(role, batches(state.step, micro, update), noise)
        for key, value in {"loss": loss, **logged}.items():
            seen[f"{role}/{key}"].append(value.detach())
        torch.autograd.backward(state.scaler.scale(loss / len(mine)))
    if share.world > 1:
        _check_gathered(method.networks[role], role)
    _average_gradients(parameters)
    state.scaler.unscale_(optimizer)
    norm = whole(nn.utils.clip_grad_norm_(parameters, config.clip or math.inf))
    # read here alone, so that a device need not be waited for after each micro-batch
    terms = share.mean({k: sum(_numbers(v, len(mine))) for k, v in seen.items()}, device)
    scaled = state.scaler.is_enabled()
    if not math.isfinite(terms[f"{role}/loss"]) or not (scaled or math.isfinite(float(norm))):
        raise NonFiniteError(state.step + 1, role, "loss or gradient")
    terms[f"{role}/grad_norm"] = float(norm)
    for group in optimizer.param_groups:
        set_rate(group, group["base"] * config.rate(state.step))
    state.scaler.step(optimizer)
    state.scaler.update()
    return terms


def _numbers(values: list[Tensor], count: int) -> list[float]:
    """The values over ``count``, as numbers."""
    return [value / count for value in torch.stack(values).tolist()]


def _check_gathered(network: nn.Module, role: str) -> None:
    """RuntimeError if gradients of a sharded network were not summed over the workers."""
    if lost := next(left_behind(network), None):
        raise RuntimeError(
            f"gradients of {role}{f'.{lost}' if lost else ''} were not summed over the workers; "
            "set student.sharding to none, and report this"
        )


def train(
    method: Trainable,
    batches: Batches,
    state: TrainState,
    *,
    device: torch.device | str = "cpu",
    rank: int = 0,
    share: Share | None = None,
) -> Iterator[StepReport]:
    """Run ``state`` to ``config.steps``, yielding a report after every step.

    ``batches(step, micro, update)`` returns this rank's batch. ``share``: of the micro-batches of a
    step, where workers share them; then all workers have rank 0. Raises NonFiniteError before a bad
    step is applied.
    """
    device, share = torch.device(device), share or Share()
    while state.step < state.config.steps:
        terms: dict[str, float] = {}
        for update, role in enumerate(method.updates(state.step)):
            terms.update(_update(method, state, role, update, batches, device, rank, share))
        rate = state.config.learning_rate * state.config.rate(state.step)
        state.step += 1
        state.update_ema()
        method.after_step(state.step)
        yield StepReport(state.step, rate, terms)
