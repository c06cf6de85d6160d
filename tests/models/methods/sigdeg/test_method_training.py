"""Sig-DEG's gradients, what is trained, and that it learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.methods.base import PathBatch
from models.methods.sigdeg.method import SigDEG
from tests.models.methods.sigdeg.making import loss_of, method_of, paths_of, trained
from tests.tiny import perturbed, weights


def gradients(method: SigDEG, batch: PathBatch) -> dict[str, Tensor]:
    method.pipeline.unet.zero_grad()
    loss_of(method, batch)[0].backward()
    named = method.pipeline.unet.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("kind", ["v_prediction", "dit"])
def test_gradient_checkpointing_changes_nothing(kind: str) -> None:
    choices = {"window_until": 0.0, "memory": True, "order": 3, "look_ahead": 0.5, "mmd": 0.1}
    plain, saving = (
        method_of(kind, **choices),
        method_of(kind, gradient_checkpointing=True, **choices),
    )
    saving.pipeline.unet.load_state_dict(perturbed(plain.pipeline.unet).state_dict())
    batch = paths_of(plain)
    expected, found = gradients(plain, batch), gradients(saving, batch)
    assert expected.keys() == found.keys() and len(found) > 20
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max())
        )


def test_gradient_is_that_of_finite_differences() -> None:
    """Through the whole recurrence, along one direction, in double precision."""
    method = method_of(window_until=0.0, memory=True, order=2, look_ahead=0.5)
    method.pipeline.unet.double()
    batch = paths_of(method)
    batch = batch._replace(Y=batch.Y.double(), xi=batch.xi.double())
    method.pipeline.to(torch.float64)
    found = gradients(method, batch)
    torch.manual_seed(0)
    direction = {name: torch.randn_like(value) for name, value in found.items()}
    slope = sum(float((direction[name] * value).sum()) for name, value in found.items())
    start = weights(method.pipeline.unet)

    def at(distance: float) -> float:
        moved = {name: start[name] + distance * direction[name] for name in direction}
        method.pipeline.unet.load_state_dict({**start, **moved})
        states = method._window(method.step_schedules[4], batch.Y, batch.xi, None, 0, 4)
        error = (states - batch.Y[:, 1:]).square().mean((0, 2, 3, 4)).detach()
        return float((error * method.step_schedules[4].weights).mean())

    assert (at(1e-5) - at(-1e-5)) / 2e-5 == pytest.approx(slope, rel=2e-3)


@pytest.mark.parametrize(
    "choices",
    [{}, {"memory": True, "look_ahead": 0.4}, {"trainable": "lora", "lora_rank": 4}],
    ids=["plain", "memory", "lora"],
)
def test_it_learns_eight_paths(choices: dict[str, Any]) -> None:
    method = method_of(nfe=(2,), window_until=0.0, **choices)
    losses = trained(method, paths_of(method, 8), 50, 3e-3)
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


@pytest.mark.parametrize("trainable", ["full", "lora", "input"])
def test_only_what_is_named_trains(trainable: str) -> None:
    method = method_of(trainable=trainable, lora_rank=2, window_until=0.0, memory=True)
    before, teacher = weights(method.pipeline.unet), weights(method.teacher.network)
    trained(method, paths_of(method), 3, 1e-2)
    after = weights(method.pipeline.unet)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    first = {"conv_in.weight", "conv_in.bias"}
    adapters = {name for name in changed if "lora_" in name}
    assert first <= changed
    if trainable != "full":
        assert changed - adapters == first and bool(adapters) == (trainable == "lora")
    assert all(
        torch.equal(teacher[name], value) for name, value in weights(method.teacher.network).items()
    )
    extra = after["conv_in.weight"][:, 1:] - before["conv_in.weight"][:, 1:]
    assert (extra.abs().sum((0, 2, 3)) > 0).all() and extra.shape[1] == 3 + 1 + 1
