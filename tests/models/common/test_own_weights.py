"""One copy of the teacher's weights for teacher, student and fake network; what is kept of them is
what they train.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.common.own_weights import load_own_weights, own_weights
from models.methods.base import ImageBatch
from models.methods.export import export_pipeline
from models.methods.student_network import student_network
from models.methods.swd.method import SwD
from models.methods.swd.schedule import make_schedule
from models.teachers.base import Denoiser
from models.training.loop import LoopConfig, TrainState, train
from tasks.training.checkpoints import flatten, latest_checkpoint, save_checkpoint, unflatten
from tests.models.methods.made import swd
from tests.tiny import tiny_teacher, weights

SCHEDULE = make_schedule([(1.0, 4), (0.6, 8)], 8, 2)
LORA = {"trainable": "lora", "lora_rank": 2, "gan": 0.0}


def batch(step: int) -> ImageBatch:
    generator = torch.Generator().manual_seed(100 + step)
    return ImageBatch(0.5 * torch.randn(4, 1, 8, 8, generator=generator), None, step)


def fresh(teacher: Denoiser) -> tuple[SwD, TrainState]:
    torch.manual_seed(1)
    method = swd(teacher, SCHEDULE, **LORA)
    return method, TrainState(method, LoopConfig(steps=4, learning_rate=1e-2, ema=0.9))


def size(networks: Iterable[nn.Module]) -> int:
    """Bytes of memory of all weights, each piece of memory once."""
    seen = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes()
        for network in networks
        for p in network.parameters()
    }
    return sum(seen.values())


def adapters(network: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in network.state_dict().items() if ".lora_" in name}


def test_three_networks_around_one_copy_of_the_weights() -> None:
    teacher = tiny_teacher()
    method, state = fresh(teacher)
    assert set(method.networks) == {"student", "fake"}
    own = sum(v.nbytes for net in method.networks.values() for v in adapters(net).values())
    base = size([teacher.network])
    found = size([teacher.network, *method.networks.values()])
    # the layer that sees the state is made anew in every student
    first = sum(p.nbytes for p in teacher.network.conv_in.parameters())
    assert 0 < own < base and found == base + own + 2 * first
    before = weights(teacher.network)
    for _ in train(method, lambda step, micro, update: batch(step), state):
        pass
    assert all(torch.equal(v, before[k]) for k, v in weights(teacher.network).items())
    a, b = (adapters(network) for network in method.networks.values())
    assert any(not torch.equal(a[name], b[name]) for name in a)
    x0 = export_pipeline(method.pipeline).unet
    assert all(torch.equal(v, before[k]) for k, v in weights(teacher.network).items())
    assert any(not torch.equal(v, before[k]) for k, v in weights(x0).items())


def test_other_precisions_are_copied() -> None:
    teacher = tiny_teacher()
    teacher.network.to(torch.bfloat16)
    student = student_network(teacher, 1, "lora", 2)
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert {p.dtype for p in teacher.network.parameters()} == {torch.bfloat16}
    whole = tiny_teacher()
    assert size([whole.network, student_network(whole, 1)]) == 2 * size([whole.network])


def test_checkpoints_hold_what_is_trained_and_resume_is_exact(tmp_path: Path) -> None:
    method, state = fresh(tiny_teacher())
    for report in train(method, lambda step, micro, update: batch(step), state):
        if report.step == 2:
            save_checkpoint(tmp_path, 2, *flatten(state.state_dict()), keep=1)
    kept = state.state_dict()["networks"]
    assert all(".lora_" in name for network in kept.values() for name in network)
    again, resumed = fresh(tiny_teacher())
    found = latest_checkpoint(tmp_path)
    assert found is not None
    resumed.load_state_dict(unflatten(*found.load()))
    for _ in train(again, lambda step, micro, update: batch(step), resumed):
        pass
    for name, network in method.networks.items():
        other = weights(again.networks[name])
        assert all(torch.equal(value, other[key]) for key, value in weights(network).items()), name


def test_weights_of_another_network_are_refused() -> None:
    student = student_network(tiny_teacher(), 1, "lora", 2)
    kept = own_weights(student, student.state_dict())
    first = next(iter(kept))
    with pytest.raises(RuntimeError, match="weights of another UNet2DModel: "):
        load_own_weights(student, {k: v for k, v in kept.items() if k != first})
    with pytest.raises(RuntimeError, match="weights of another UNet2DModel: more"):
        load_own_weights(student, kept | {"more": torch.zeros(1)})
    whole = student_network(tiny_teacher(), 1)
    with pytest.raises(RuntimeError, match="Missing key"):
        load_own_weights(whole, kept)
