"""SwD on tiny networks: its networks, their turns and their losses."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from models.common.errors import InputError
from models.methods.base import ImageBatch
from models.methods.swd.method import SwD
from models.teachers.architectures import build_scheduler, build_unet
from models.teachers.base import Denoiser
from models.teachers.conditioning import class_condition
from models.teachers.loading import build_denoiser
from tests.models.methods.made import swd
from tests.models.methods.swd.making import CONFIG, MMD_ONLY, SCHEDULE, batch, normals, stream
from tests.tiny import tiny_dit, tiny_teacher, tiny_unet


def test_mmd_alone_never_builds_the_fake_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: SwD) -> Denoiser:
        raise AssertionError("built")

    monkeypatch.setattr(SwD, "_fake_network", refuse)
    method = swd(tiny_teacher(), SCHEDULE, **MMD_ONLY)
    assert set(method.networks) == {"student"} and method.updates(3) == ("student",)
    gated = swd(tiny_teacher(), SCHEDULE, gan=0.0, excluded=(4, 6, 8))
    assert set(gated.networks) == {"student"}
    with pytest.raises(AssertionError, match="built"):
        swd(tiny_teacher(), SCHEDULE, **CONFIG)


def test_turns_follow_the_gate() -> None:
    method = swd(tiny_teacher(), SCHEDULE, gan=0.0, fake_updates=3, excluded=(4,))
    assert [method.updates(i) for i in range(4)] == [("student",)] * 2 + [
        ("fake",) * 3 + ("student",)
    ] * 2
    both = swd(
        tiny_teacher(), SCHEDULE, **CONFIG | {"dmd": 0.0}
    )  # a GAN trains the fake network for its features
    assert both.updates(0) == ("fake", "fake", "discriminator", "student")
    with pytest.raises(InputError, match="no loss is left at size 4"):
        swd(tiny_teacher(), SCHEDULE, mmd=0.0, gan=0.0, excluded=(4,))
    with pytest.raises(
        InputError, match="no loss but the GAN, which does not converge alone, is left at size 4"
    ):
        swd(tiny_teacher(), SCHEDULE, mmd=0.0, excluded=(4,))


def test_networks_touch_their_own_weights_only() -> None:
    method = swd(tiny_teacher(), SCHEDULE, **CONFIG)
    for role in ("fake", "discriminator", "student"):
        for network in method.networks.values():
            network.zero_grad(set_to_none=True)
        loss, _ = method.loss(role, batch(2), stream())
        torch.autograd.backward(loss)
        touched = {
            name
            for name, net in method.networks.items()
            if any(p.grad is not None for p in net.parameters())
        }
        assert touched == {role}
        assert all(p.grad is not None for p in method.networks[role].parameters())
    assert all(p.grad is None for p in method.teacher.network.parameters())


def test_student_loss_is_the_sum_of_its_terms() -> None:
    method = swd(tiny_teacher(), SCHEDULE, **CONFIG | {"dmd": 0.5, "gan": 0.25, "mmd": 2.0})
    total, terms = method.loss("student", batch(3), stream(4))
    wanted = 0.5 * terms["dmd_8"] + 0.25 * terms["gan_8"] + 2.0 * terms["mmd_8"]
    assert torch.allclose(total, wanted) and set(terms) == {"dmd_8", "gan_8", "mmd_8"}
    # the untrained fake network is the teacher, so there is nothing to gain yet
    assert float(terms["dmd_8"].detach()) == pytest.approx(0, abs=1e-9)


def test_dit_students_run_at_every_size() -> None:
    teacher = build_denoiser(tiny_dit(), DDPMScheduler(clip_sample=False))
    method = swd(teacher, SCHEDULE, **CONFIG)
    condition = class_condition(torch.tensor([0, 1, 2, 0]))
    given = ImageBatch(0.5 * normals(4, 2, 8, 8), condition, 2)
    for role in ("fake", "discriminator", "student"):
        assert torch.isfinite(method.loss(role, given, stream())[0])
    assert method.sample(normals(4, 2, 8, 8), condition).shape == (4, 2, 8, 8)


def test_guidance_reaches_the_teacher_alone() -> None:
    """With the fake network untrained and no guidance there is nothing to learn; guidance makes a
    difference.
    """
    teacher = build_denoiser(
        tiny_unet(classes=3), DDPMScheduler(prediction_type="v_prediction"), null_class=3
    )
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    terms = []
    for guidance in (1.0, 3.0):
        method = swd(teacher, SCHEDULE, **CONFIG | {"guidance": guidance, "gan": 0.0, "mmd": 0.0})
        terms.append(float(method.loss("student", batch(3, labels=labels), stream())[0].detach()))
    assert terms[0] == pytest.approx(0, abs=1e-9) and terms[1] > 1e-4


def test_dropout_is_off_in_all_networks() -> None:
    teacher = build_denoiser(
        build_unet(8, 1, (8, 16), 1, dropout=0.5), build_scheduler("v_prediction", "linear")
    )
    method = swd(teacher, SCHEDULE, **CONFIG)
    layers = [
        m
        for net in method.networks.values()
        for m in net.modules()
        if isinstance(m, torch.nn.Dropout)
    ]
    assert layers and all(layer.p == 0 for layer in layers)


@pytest.mark.parametrize("role", ["student", "fake"])
def test_gradient_checkpointing_changes_nothing_but_memory(role: str) -> None:
    kept: list[int] = []

    def keep(saved: Tensor) -> Tensor:
        kept.append(saved.numel())
        return saved

    found = []
    for saving in (False, True):
        method = swd(tiny_teacher(), SCHEDULE, **CONFIG | {"gradient_checkpointing": saving})
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            loss, _ = method.loss(role, batch(3), stream())
        torch.autograd.backward(loss)
        found.append((sum(kept), {n: p.grad for n, p in method.networks[role].named_parameters()}))
    (whole, expected), (less, again) = found
    assert less < 0.9 * whole
    for name, grad in expected.items():
        torch.testing.assert_close(again[name], grad, rtol=1e-4, atol=1e-6)
