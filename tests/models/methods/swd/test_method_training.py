"""Trainings with SwD: one scale a step, resume, and each loss alone improves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from models.common.random import generator_for
from models.methods.base import ImageBatch
from models.methods.denoising import Denoising, Images
from models.methods.swd.method import SwD
from models.methods.swd.schedule import make_schedule
from models.teachers.architectures import build_scheduler
from models.teachers.base import Denoiser
from models.teachers.loading import build_denoiser
from models.training.loop import LoopConfig, TrainState, train
from tests.models.methods.made import swd
from tests.models.methods.swd.making import CONFIG, MMD_ONLY, SCHEDULE, batch, normals, stream
from tests.tiny import tiny_teacher, tiny_unet, weights


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
