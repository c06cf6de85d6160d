"""Networks of series: what students widen, and the scaling of their data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, UNet1DModel

from models.common.errors import InputError
from models.methods.student_network import student_network
from models.teachers.architectures import build_network, build_scheduler
from models.teachers.base import Denoiser
from models.teachers.codec import ScaledCodec
from models.teachers.loading import build_denoiser, load_denoiser, set_scaling
from tests.tiny import perturbed, weights


def residual(channels: int = 2, widths: tuple[int, ...] = (8, 16)) -> UNet1DModel:
    torch.manual_seed(0)
    return perturbed(build_network((channels, 16), widths, 1))


def plain(channels: int = 2) -> UNet1DModel:
    """diffusers' default blocks: the time comes as channels behind the state."""
    torch.manual_seed(0)
    return perturbed(
        UNet1DModel(
            sample_size=64, in_channels=channels, out_channels=channels, extra_in_channels=16,
            block_out_channels=(8, 32, 64),
        )
    )  # fmt: skip


def denoiser(network: Any) -> Denoiser:
    return build_denoiser(network, build_scheduler("v_prediction", "linear"))


@pytest.mark.parametrize("make", [residual, plain, lambda: residual(8)])
def test_a_widened_network_starts_as_the_teacher(make: Any, tmp_path: Path) -> None:
    """Whatever the added channels hold; also where the first shortcut was the identity; and it is
    the network that its config makes.
    """
    network = make()
    before, channels = weights(network), network.config.in_channels
    student = student_network(denoiser(network), channels + 5).eval()
    x, extra = (torch.randn(3, c, network.config.sample_size) for c in (channels, 5))
    t = torch.tensor([900, 40, 3])
    with torch.no_grad():
        expected = network(x, t).sample
        torch.testing.assert_close(student(torch.cat([x, extra], 1), t).sample, expected)
    assert all(torch.equal(value, before[name]) for name, value in weights(network).items())
    student.save_pretrained(tmp_path)
    again = UNet1DModel.from_pretrained(tmp_path)
    assert again.config.in_channels == channels + 5
    with torch.no_grad():
        found = again(torch.cat([x, extra], 1), t).sample
    torch.testing.assert_close(found, expected)
    student.train()(torch.cat([x, extra], 1), t).sample.square().mean().backward()
    with torch.no_grad():
        for parameter in (p for p in student.parameters() if p.requires_grad):
            parameter -= 0.1 * parameter.grad
        moved = [student(torch.cat([x, e], 1), t).sample for e in (extra, 0 * extra)]
    assert not torch.allclose(*moved, atol=1e-4), "a step makes it see the added channels"


def test_what_cannot_be_widened_is_refused() -> None:
    with pytest.raises(InputError, match=r"first block makes 8 channels, as many as a student"):
        student_network(denoiser(residual()), 8)
    with pytest.raises(InputError, match="expected multiples of 8"):
        build_network((1, 16), (12, 16), 1)
    with pytest.raises(InputError, match="size 10 must be divisible by 4"):
        build_network((1, 10), (8, 8, 8), 1)
    with pytest.raises(InputError, match="neither classes nor dropout"):
        build_network((1, 16), (8,), 1, num_classes=3)


def test_scaling_travels_in_the_folder_and_counts(tmp_path: Path) -> None:
    """teacher.json says how states become data; another scaling is another teacher."""
    network = residual()
    DDPMPipeline(network, build_scheduler("v_prediction", "linear")).save_pretrained(tmp_path)
    bare = load_denoiser(tmp_path)
    scaling = {"mean": [1.0, -2.0], "std": [3.0, 0.5]}
    (tmp_path / "teacher.json").write_text(json.dumps({"scaling": scaling}))
    teacher = load_denoiser(tmp_path)
    assert isinstance(teacher.codec, ScaledCodec) and teacher.codec.scaling == scaling
    assert bare.codec.scaling is None and bare.fingerprint() != teacher.fingerprint()
    data = torch.randn(4, 2, 16)
    expected = torch.stack([(data[:, 0] - 1) / 3, (data[:, 1] + 2) / 0.5], 1)
    torch.testing.assert_close(teacher.encode(data), expected)
    torch.testing.assert_close(teacher.decode(expected), data)
    assert float(teacher.decode(100 * expected).abs().max()) > 50  # no bound
    for wrong in ({"mean": [0.0], "std": [1.0]}, {"mean": [0.0, 0.0]}):
        with pytest.raises(InputError, match="one number per channel"):
            set_scaling(bare, wrong, "t")
    with pytest.raises(InputError, match="std above 0"):
        set_scaling(bare, {"mean": [0.0, 0.0], "std": [1.0, 0.0]}, "t")
