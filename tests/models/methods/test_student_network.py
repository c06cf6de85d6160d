"""Student networks start as their teacher, train what they say, and merge into stock diffusers
models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from torch import Tensor

from models.common.errors import InputError
from models.methods.student_network import merged, student_network
from models.teachers.architectures import build_scheduler
from models.teachers.base import Denoiser
from models.teachers.loading import build_denoiser
from tests.tiny import tiny_dit, tiny_unet, weights

KINDS = {"unet": (tiny_unet, 1), "dit": (tiny_dit, 2)}


def inputs(channels: int, classes: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    x = torch.randn(3, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([900, 40, 3]), torch.tensor([0, 2, 1]) if classes else None


def denoiser(network: Any) -> Denoiser:
    return build_denoiser(network, build_scheduler("epsilon", "linear"))


def run(network: Any, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    with torch.no_grad():
        return network(x, t, class_labels=labels).sample


def one_update(student: Any, x: Tensor, t: Tensor, labels: Tensor | None) -> set[str]:
    """Names of the weights that one large gradient step changes."""
    before = weights(student)
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # LoRA's first factor has no gradient while its second is zero
        optimizer.zero_grad()
        student(x, t, class_labels=labels).sample.square().mean().backward()
        optimizer.step()
    after = weights(student)
    return {name for name in after if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("trainable", ["full", "lora", "input"])
@pytest.mark.parametrize("kind", KINDS)
def test_widened_network_starts_as_the_teacher(kind: str, trainable: str) -> None:
    """Whatever the added channels hold, in training mode, and without touching the teacher."""
    make, channels = KINDS[kind]
    teacher = make()
    before = weights(teacher)
    student = student_network(denoiser(teacher), channels + 4, trainable, rank=2)
    assert student.training and student.config.in_channels == channels + 4
    x, t, labels = inputs(channels, kind == "dit")
    extra = 100 * torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = run(teacher, x, t, labels)
    for _ in range(3):
        found = run(student, torch.cat([x, extra], 1), t, labels)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    one_update(student, torch.cat([x, extra], 1), t, labels)
    assert all(torch.equal(before[name], value) for name, value in weights(teacher).items())


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_named_weights_train(kind: str) -> None:
    make, channels = KINDS[kind]
    x, t, labels = inputs(channels + 2, kind == "dit")
    first = "conv_in" if kind == "unet" else "pos_embed.proj"
    changed = one_update(student_network(denoiser(make()), channels + 2, "input"), x, t, labels)
    assert changed == {f"{first}.weight", f"{first}.bias"}
    changed = one_update(
        student_network(denoiser(make()), channels + 2, "lora", rank=2), x, t, labels
    )
    adapters = {name for name in changed if ".lora_" in name}
    assert changed - adapters == {f"{first}.weight", f"{first}.bias"}
    assert any("to_q.lora_B" in name for name in adapters)
    assert any(("conv1" if kind == "unet" else "net.2") in name for name in adapters)
    full = student_network(denoiser(make()), channels + 2, "full")
    trained = one_update(full, x, t, labels)
    assert {name for name, p in full.named_parameters() if not p.requires_grad} == set()
    assert len(trained) > 0.8 * len(full.state_dict())


@pytest.mark.parametrize("trainable", ["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_a_stock_model(tmp_path: Path, kind: str, trainable: str) -> None:
    """Same function as the trained student, plain keys, and the same again after a trip to disk."""
    make, channels = KINDS[kind]
    student = student_network(denoiser(make()), channels + 3, trainable, rank=2)
    x, t, labels = inputs(channels + 3, kind == "dit")
    start = run(student, x, t, labels)
    assert one_update(student, x, t, labels)
    expected = run(student, x, t, labels)
    assert (expected - start).abs().max() > 1e-2
    plain = merged(student)
    found = run(plain, x, t, labels)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(run(student, x, t, labels), expected)
    assert not plain.training and not any("lora" in name for name in plain.state_dict())
    plain.save_pretrained(tmp_path / "s")
    kind_of: Any = UNet2DModel if kind == "unet" else DiTTransformer2DModel
    again = kind_of.from_pretrained(tmp_path / "s", use_safetensors=True, local_files_only=True)
    assert again.config.in_channels == channels + 3
    torch.testing.assert_close(run(again.eval(), x, t, labels), found, rtol=0, atol=0)


def test_lora_trains_few_weights() -> None:
    student = student_network(denoiser(tiny_unet()), 3, "lora", rank=1)
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    assert trained < 0.25 * sum(p.numel() for p in tiny_unet().parameters())
    assert student.get_submodule("conv_in").weight.shape[1] == 3


def test_errors() -> None:
    with pytest.raises(InputError, match="'half': expected full, lora or input"):
        student_network(denoiser(tiny_unet()), 3, "half")
    with pytest.raises(InputError, match=r"input channels 1: expected at least the teacher's 2"):
        student_network(denoiser(tiny_dit()), 1)
