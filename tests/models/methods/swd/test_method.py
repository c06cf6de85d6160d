"""SwD on tiny networks: sampler against diffusers, networks, training pairs, resume, and a training
that improves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler
from torch import Tensor

from models.common.errors import InputError
from models.common.random import generator_for
from models.methods.base import ImageBatch
from models.methods.denoising import Denoising, Images
from models.methods.losses import rbf_mmd
from models.methods.swd.build import shrink
from models.methods.swd.losses import linear_mmd
from models.methods.swd.method import SwD
from models.methods.swd.pipeline import renoise, upscale
from models.methods.swd.schedule import make_schedule
from models.teachers.architectures import build_scheduler, build_unet
from models.teachers.base import Denoiser
from models.teachers.conditioning import class_condition
from models.teachers.loading import build_denoiser
from models.training.loop import LoopConfig, TrainState, train
from tests.models.methods.made import swd
from tests.models.teachers.texts import prompt_teacher
from tests.tiny import tiny_dit, tiny_teacher, tiny_unet, weights

SCHEDULE = make_schedule([(1.0, 4), (0.9, 4), (0.7, 6), (0.4, 8)], 8, 2)
CONFIG: dict[str, Any] = {"fake_updates": 2}
MMD_ONLY: dict[str, Any] = {"dmd": 0.0, "gan": 0.0}


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(step: int = 0, n: int = 6, labels: Tensor | None = None) -> ImageBatch:
    return ImageBatch(0.5 * normals(n, 1, 8, 8, seed=100 + step), class_condition(labels), step)


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


def test_pairs_are_shrunk_by_area_upscaled_and_then_noised() -> None:
    method = swd(tiny_teacher("flow"), SCHEDULE, **MMD_ONLY)
    given = batch(2)
    target, x = method.pair(given, 2, stream(3))
    six = F.adaptive_avg_pool2d(given.x0, 6)
    four = given.x0.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    assert torch.allclose(target, six, atol=1e-6)
    eps = torch.randn(six.shape, generator=stream(3))
    up = F.interpolate(four, size=6, mode="bicubic", align_corners=False)
    assert torch.allclose(x, 0.3 * up + 0.7 * eps, atol=1e-6)
    target, x = method.pair(given, 0, stream(3))
    assert torch.equal(x, torch.randn(target.shape, generator=stream(3))) and target.shape[-1] == 4


def test_backward_simulation_feeds_the_students_own_steps() -> None:
    method = swd(
        tiny_teacher("flow"),
        SCHEDULE,
        **MMD_ONLY | {"compare": "batch", "backward_simulation": True},
    )
    target, x = method.pair(batch(3), 3, stream(3))
    generator = stream(3)
    sizes = [step.size for step in method.scale_schedule]
    *later, first = (
        torch.randn((len(x), 1, size, size), generator=generator) for size in reversed(sizes)
    )
    expected = first
    for step, following, eps in zip(
        method.scale_schedule, method.scale_schedule[1:], reversed(later), strict=False
    ):
        with torch.no_grad():
            previous = method.pipeline.denoise(step, expected)
        expected = renoise(following, upscale(previous, following.size), eps)
    assert torch.allclose(x, expected, atol=1e-5) and torch.equal(target, batch(3).x0)
    assert not any(method.paired(i) for i in range(4))


def test_real_images_stand_for_the_teachers_where_batches_are_compared() -> None:
    """Inputs from noise do not depend on x0, so with y as ``real`` the loss is that of a batch made
    of y.
    """
    method = swd(
        tiny_teacher("flow"),
        SCHEDULE,
        **MMD_ONLY | {"compare": "batch", "backward_simulation": True},
    )
    for step in range(4):
        given, y = batch(step), 0.5 * normals(6, 1, 8, 8, seed=7)
        real = method.loss("student", given._replace(real=y), stream())[0]
        assert torch.equal(real, method.loss("student", given._replace(x0=y), stream())[0])
        assert not torch.equal(real, method.loss("student", given, stream())[0])
    own = swd(
        tiny_teacher("flow"), SCHEDULE, **MMD_ONLY
    )  # every image with its own target, but for the first step
    given, y = batch(2), normals(6, 1, 8, 8, seed=7)
    alone, beside = (
        own.loss("student", each, stream())[0] for each in (given, given._replace(real=y))
    )
    assert torch.equal(alone, beside)


def test_paired_mmd_is_zero_at_the_target_and_first_step_compares_batches() -> None:
    method = swd(tiny_teacher(), SCHEDULE, **MMD_ONLY)
    y = shrink(method.teacher, batch().x0, 6)
    assert float(method._mmd(2, y, y, None, stream())) == pytest.approx(0, abs=1e-7)
    assert float(method._mmd(2, y.roll(1, 0), y, None, stream())) > 1e-3
    four = shrink(method.teacher, batch().x0, 4)
    same = method._mmd(0, four, four, None, stream())
    assert torch.allclose(method._mmd(0, four.roll(1, 0), four, None, stream()), same, atol=0.2)


def test_with_prompts_each_image_has_its_own_target_at_the_first_step_too() -> None:
    _, teacher = prompt_teacher("sd", 32)
    size = teacher.shape[1]
    method = swd(
        teacher, make_schedule([(1.0, size), (0.5, size)], size, teacher.stride), **MMD_ONLY
    )
    condition = teacher.encode_condition(torch.arange(2))
    y = normals(2, *teacher.shape)
    assert float(method._mmd(0, y, y, condition, stream())) == pytest.approx(0, abs=1e-7)
    assert float(method._mmd(0, y.roll(1, 0), y, condition, stream())) > 1e-3


def test_batch_mmd_compares_features_and_denoised_images_within_classes() -> None:
    teacher = build_denoiser(
        tiny_unet(classes=3), DDPMScheduler(prediction_type="v_prediction"), null_class=3
    )
    method = swd(teacher, SCHEDULE, **MMD_ONLY | {"compare": "batch", "mmd_levels": 0.3})
    condition = class_condition(torch.tensor([0, 1, 0, 1, 0, 1, 0]))
    x0, target = normals(7, 1, 6, 6), normals(7, 1, 6, 6, seed=1)
    t, x_u, y_u = method.mmd_levels.renoised(x0, stream(2), target, together=True)
    assert float(t.max()) < 300
    wanted = 0.0
    for look in (teacher.features, teacher.denoise):
        a, b = (look(v, t, condition).flatten(1) for v in (x_u, y_u))
        wanted += sum(
            len(rows) / 7 * float(rbf_mmd(a[rows], b[rows], (0.5, 1.0, 2.0)))
            for rows in ([0, 2, 4, 6], [1, 3, 5])
        )
    assert float(method._mmd(2, x0, target, condition, stream(2))) == pytest.approx(
        wanted, abs=1e-5
    )
    paired = swd(teacher, SCHEDULE, **MMD_ONLY | {"mmd_levels": 0.3})
    assert float(paired._mmd(2, x0, target, condition, stream(2))) != pytest.approx(
        wanted, abs=1e-2
    )


def test_one_scale_per_step_for_all_micro_batches_and_networks() -> None:
    method = swd(tiny_teacher(), SCHEDULE, **CONFIG)
    seen: list[tuple[int, str, int]] = []
    kept = method.pair

    def pair(given: ImageBatch, i: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        seen.append((given.step, "pair", i))
        return kept(given, i, generator)

    method.pair = pair  # type: ignore[method-assign, assignment]
    state = TrainState(method, LoopConfig(steps=4, accumulate=2))
    for _ in train(method, lambda step, micro, update: batch(step, 4), state):
        pass
    assert {(step, i) for step, _, i in seen} == {(k, k) for k in range(4)}
    assert len(seen) == 4 * 2 * (2 + 1 + 1)


def test_every_cycle_takes_each_scale_once_in_a_rotating_order() -> None:
    method = swd(tiny_teacher(), SCHEDULE, **MMD_ONLY)
    order = [method.index(step) for step in range(16)]
    assert all(sorted(order[k : k + 4]) == [0, 1, 2, 3] for k in range(0, 16, 4))
    assert {method.index(step) for step in range(9, 160, 10)} == {0, 1, 2, 3}


def test_resume_is_exact_with_three_networks(tmp_path: Path) -> None:
    from tasks.training.checkpoints import flatten, latest_checkpoint, save_checkpoint, unflatten

    def fresh() -> tuple[SwD, TrainState]:
        torch.manual_seed(1)
        method = swd(tiny_teacher(), SCHEDULE, **CONFIG)
        rates = {"fake": 2e-4, "discriminator": 5e-4}
        return method, TrainState(method, LoopConfig(steps=4, learning_rates=rates, ema=0.9))

    method, state = fresh()
    for report in train(method, lambda step, micro, update: batch(step), state):
        if report.step == 2:
            save_checkpoint(tmp_path, 2, *flatten(state.state_dict()), keep=1)
    again, resumed = fresh()
    found = latest_checkpoint(tmp_path)
    assert found is not None
    resumed.load_state_dict(unflatten(*found.load()))
    for _ in train(again, lambda step, micro, update: batch(step), resumed):
        pass
    assert set(method.networks) == {"student", "fake", "discriminator"}
    for name, network in method.networks.items():
        other = weights(again.networks[name])
        assert all(torch.equal(value, other[key]) for key, value in weights(network).items()), name
    assert all(
        torch.equal(v, resumed.ema_weights["student"][k])
        for k, v in state.ema_weights["student"].items()
    )


def two_colours(step: int, micro: int, update: int) -> ImageBatch:
    """Images of one colour each, -0.8 or 0.8."""
    colour = torch.randint(2, (32, 1, 1, 1), generator=generator_for("cpu", step)) * 1.6 - 0.8
    return ImageBatch(colour.expand(-1, 1, 8, 8).contiguous(), None, step)


@pytest.fixture(scope="module")
def taught() -> Denoiser:
    """A teacher that has learnt the two colours at sizes 4 and 8."""
    torch.manual_seed(0)
    method = Denoising(tiny_unet(), build_scheduler("v_prediction", "linear"), (4, 8))
    state = TrainState(method, LoopConfig(steps=250, learning_rate=4e-3))
    for _ in train(method, lambda step, *_: Images(two_colours(step, 0, 0).x0, None, step), state):
        pass
    return build_denoiser(method.networks["teacher"], method.teacher.scheduler)


@pytest.mark.parametrize(("mmd", "dmd"), [(1.0, 0.0), (0.0, 1.0)])
def test_each_loss_alone_brings_two_step_samples_to_the_data(
    taught: Denoiser, mmd: float, dmd: float
) -> None:
    schedule = make_schedule([(1.0, 4), (0.6, 8)], 8, 2)
    method = swd(taught, schedule, mmd=mmd, dmd=dmd, gan=0.0, fake_updates=2)
    state = TrainState(method, LoopConfig(steps=120, learning_rate=1e-3))

    def samples() -> Tensor:
        return method.sample(normals(128, 1, 8, 8), generator=stream(1))

    def error(x0: Tensor) -> float:
        return float((x0.abs() - 0.8).square().mean())

    before = error(samples())
    for _ in train(method, two_colours, state):
        pass
    after = samples()
    assert error(after) < 0.6 * before
    assert (
        0.25 < float((after.mean((1, 2, 3)) > 0).float().mean()) < 0.75
    )  # both colours are still made


def test_dmd_and_gan_with_a_guided_conditional_teacher_and_lora() -> None:
    teacher = build_denoiser(
        tiny_unet(classes=3), DDPMScheduler(prediction_type="v_prediction"), null_class=3
    )
    choices = CONFIG | {"trainable": "lora", "lora_rank": 2, "kernel": "rbf"}
    method = swd(teacher, SCHEDULE, guidance=2.0, **choices)
    trained = {n for n, p in method.networks["student"].named_parameters() if p.requires_grad}
    assert trained and all("lora" in name or name.startswith("conv_in") for name in trained)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    state = TrainState(method, LoopConfig(steps=4, learning_rate=1e-3))
    reports = list(train(method, lambda step, micro, update: batch(step, labels=labels), state))
    assert {key.split("/")[0] for key in reports[-1].terms} == {"student", "fake", "discriminator"}
    assert all(torch.isfinite(torch.tensor(list(r.terms.values()))).all() for r in reports)
    assert method.fake is not None and not any(
        p.requires_grad for p in teacher.network.parameters()
    )


def test_dit_students_run_at_every_size() -> None:
    teacher = build_denoiser(tiny_dit(), DDPMScheduler(clip_sample=False))
    method = swd(teacher, SCHEDULE, **CONFIG)
    condition = class_condition(torch.tensor([0, 1, 2, 0]))
    given = ImageBatch(0.5 * normals(4, 2, 8, 8), condition, 2)
    for role in ("fake", "discriminator", "student"):
        assert torch.isfinite(method.loss(role, given, stream())[0])
    assert method.sample(normals(4, 2, 8, 8), condition).shape == (4, 2, 8, 8)


def test_latents_are_shrunk_in_pixel_space() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=2, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16,
    )  # fmt: skip
    teacher = build_denoiser(tiny_dit(), DDPMScheduler(clip_sample=False), vae=vae)
    z = normals(2, 2, 8, 8)
    small = shrink(teacher, z, 4)
    with torch.no_grad():
        images = vae.decode(z / vae.config.scaling_factor).sample.clamp(-1, 1)
        wanted = vae.encode(F.avg_pool2d(images, 2)).latent_dist.mean * vae.config.scaling_factor
    assert torch.allclose(small, wanted, atol=1e-5)
    assert not torch.allclose(small, F.avg_pool2d(z, 2), atol=1e-2)
    assert shrink(teacher, z, 8) is z


def test_linear_mmd_of_shuffled_places_is_zero() -> None:
    tokens = normals(2, 9, 4)
    assert float(linear_mmd(tokens, tokens.flip(1))) == pytest.approx(0, abs=1e-6)


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


def highest_levels(
    method: SwD, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, float], dict[str, bool]]:
    """Filled by each loss: the highest time that it has looked at, and whether its batch shared
    one.
    """
    seen: dict[str, float] = {}
    shared: dict[str, bool] = {}
    for name in ("dmd", "fake", "critic", "mmd"):
        levels = getattr(method, f"{name}_levels")
        kept = levels.renoised

        def renoised(*given: Any, kept: Any = kept, name: str = name, **options: Any) -> Any:
            found = kept(*given, **options)
            seen[name] = max(float(found[0].max()), seen.get(name, 0.0))
            shared[name] = len(found[0].unique()) == 1
            return found

        monkeypatch.setattr(levels, "renoised", renoised)
    return seen, shared


def test_levels_of_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """DMD and GAN look at the lower 60 % of levels, MMD at its own part, the fake network learns
    all; batches share one level.
    """
    method = swd(tiny_teacher(), SCHEDULE, **CONFIG | {"mmd_levels": 0.3})
    seen, shared = highest_levels(method, monkeypatch)
    for role in ("fake", "discriminator", "student"):
        method.loss(role, batch(3, 256), stream())
    for name, part in {"dmd": 0.6, "critic": 0.6, "fake": 1.0, "mmd": 0.3}.items():
        assert 970 * part < seen[name] < 1000 * part, name
    assert not any(shared.values())
    method.loss("student", batch(0, 64), stream())
    assert shared["mmd"] and not shared["dmd"]


@pytest.mark.parametrize("part", [0.79, (0.79, 0.5, 0.01)])
def test_levels_of_dmd_and_gan_are_a_choice(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    method = swd(tiny_teacher("flow"), SCHEDULE, **CONFIG | {"dmd_levels": part})
    seen, _ = highest_levels(method, monkeypatch)
    for role in ("discriminator", "student"):
        method.loss(role, batch(3, 256), stream())
    for name in ("dmd", "critic"):
        assert 770 < seen[name] <= 790.001, name


def test_fake_loss_of_epsilon_networks_is_bounded_at_high_noise() -> None:
    """An epsilon error e is an error e sigma / alpha of x0, 158 at the last level; it weighs at
    most 10 times.
    """
    method = swd(
        tiny_teacher("epsilon"), SCHEDULE, **CONFIG | {"gan": 0.0, "conditioning_limit": 10.0}
    )
    free = swd(
        tiny_teacher("epsilon"), SCHEDULE, **CONFIG | {"gan": 0.0, "conditioning_limit": None}
    )
    for each in (method, free):
        assert each.fake is not None
        with torch.no_grad():
            each.fake.network.conv_out.bias.add_(1.0)
    given = batch(3, 256)
    bounded, unbounded = (
        float(m.loss("fake", given, stream())[0].detach()) for m in (method, free)
    )
    assert bounded < 0.2 * unbounded


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
