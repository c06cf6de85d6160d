"""What a simulated call is told to cost, against the call itself."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.methods.student_network import student_network
from models.teachers.network_call import call_network
from tasks.estimate.blueprint import Blueprint
from tasks.estimate.networks import Networks, condition_of
from tasks.estimate.simulation import ATTENTION, ROWS, LiveBytes, simulate
from tests.models.teachers.texts import prompt_teacher
from tests.tiny import tiny_teacher


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x


def test_bytes_of_a_chain_of_layers_are_those_of_its_activations() -> None:
    """tanh keeps its output; a linear layer the one before it, the same tensor."""
    call, inputs = (lambda net, given: net(given["x"])), lambda n: {"x": torch.zeros(n, 64)}
    trained = simulate(Wide, inputs, call, "weights")
    row = 64 * 4
    assert trained.held == (0.0, 4 * row)
    # gradients of all weights at the end, and two rows on the way back
    assert trained.peak_of(0) == pytest.approx(4 * 64 * 64 * 4, rel=0.05)
    plain = simulate(Wide, inputs, call, "none")
    assert plain.held == (0.0, row) and plain.peak == (0.0, 3 * row)
    assert plain.flops == 4 * 2 * 64 * 64 and trained.flops == pytest.approx(2.75 * plain.flops)


@pytest.mark.parametrize("gradient", ["none", "input", "weights"])
@pytest.mark.parametrize("name", ["unet", "sd", "sd3", "flux"])
def test_fake_tensors_cost_what_real_ones_do(name: str, gradient: Any) -> None:
    """Bytes and FLOPs of the same call with numbers in it, for one row and for 16."""
    teacher = tiny_teacher() if name == "unet" else prompt_teacher(name)[1]
    condition = {}
    if name != "unet":
        assert teacher.conditions is not None
        rows = teacher.conditions[torch.zeros(1, dtype=torch.int64)]
        condition = {k: (tuple(v.shape[1:]), v.dtype) for k, v in rows.items()}
    plan = Blueprint(teacher, name, condition=condition)
    cost = Networks(plan, teacher.shape[0]).cost("student", gradient)
    network: Any = student_network(teacher, teacher.shape[0])
    if gradient == "input":
        network.requires_grad_(False)
    for n in (1, ROWS):
        given = condition_of(plan, n)
        x = torch.zeros(n, *teacher.shape, requires_grad=gradient == "input")
        times = torch.full((n,), 500.0)
        pixels = Networks(plan, 1).pixels
        gc.collect()
        counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
        live = LiveBytes([*network.parameters(), *network.buffers(), x, times, *given.values()])
        with torch.set_grad_enabled(gradient != "none"), live, counter:
            made = call_network(network, x, times, given, pixels)
            held = live.live
            if gradient != "none":
                made.float().square().mean().backward()
        assert cost.flops * n == counter.get_total_flops()
        assert cost.held_by(n) == pytest.approx(held, rel=0.02)
        assert cost.peak_of(n) == pytest.approx(live.peak, rel=0.02)
        network.zero_grad(set_to_none=True)


def test_checkpointing_holds_less_and_computes_more() -> None:
    _, teacher = prompt_teacher("sd3")
    assert teacher.conditions is not None
    rows = teacher.conditions[torch.zeros(1, dtype=torch.int64)]
    plan = Blueprint(
        teacher, "sd3", condition={k: (tuple(v.shape[1:]), v.dtype) for k, v in rows.items()}
    )
    plain = Networks(plan, teacher.shape[0]).cost("student", "weights")
    again = Networks(plan, teacher.shape[0], checkpointing="block").cost("student", "weights")
    assert again.held_by(8) < 0.6 * plain.held_by(8)
    assert again.flops > 1.2 * plain.flops
