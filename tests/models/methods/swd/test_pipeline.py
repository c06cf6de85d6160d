"""The scale-wise sampler: against diffusers, by hand, damped at pure noise, saved and opened
again.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchLCMScheduler
from torch import Tensor

from models.common.errors import InputError
from models.methods.swd.build import build_swd_pipeline, make_scale_schedule
from models.methods.swd.pipeline import ScaleStep, SwDPipeline
from models.methods.swd.schedule import make_schedule
from tests.models.methods.made import swd_config
from tests.tiny import tiny_teacher

SCHEDULE = make_schedule([(1.0, 4), (0.9, 4), (0.7, 6), (0.4, 8)], 8, 2)
CONFIG = swd_config(fake_updates=2)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_sampler_is_diffusers_lcm_scheduler_for_flow_matching() -> None:
    teacher = tiny_teacher("flow")
    pipeline = build_swd_pipeline(teacher, SCHEDULE, CONFIG)
    noise = normals(3, 1, 8, 8)
    ours, seen = pipeline.rollout(noise, generator=stream(5))

    scheduler = FlowMatchLCMScheduler(num_train_timesteps=1000, shift=1.0)
    scheduler.set_scale_factors([1.0, 1.5, 2.0], "bicubic")
    scheduler.set_timesteps(sigmas=[s.sigma for s in SCHEDULE])
    x, generator = noise[..., :4, :4], stream(5)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(teacher.predict(x, t), t, x, generator=generator).prev_sample
    assert torch.allclose(ours, x, atol=2e-5)
    assert [tuple(v.shape[-2:]) for v in seen] == [(4, 4), (4, 4), (6, 6), (8, 8)]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow"])
def test_rollout_by_hand_with_the_teachers_own_denoiser(prediction: str) -> None:
    teacher = tiny_teacher(prediction)
    scale_schedule = make_scale_schedule(teacher, SCHEDULE)
    pipeline = SwDPipeline(
        teacher.network, [asdict(s) for s in scale_schedule], prediction, [1, 8, 8]
    )
    noise, xi = (
        normals(2, 1, 8, 8),
        [normals(2, 1, s.size, s.size, seed=i) for i, s in enumerate(scale_schedule[1:])],
    )
    x0 = teacher.denoise(noise[..., :4, :4], scale_schedule[0].t)
    for step, eps in zip(scale_schedule[1:], xi, strict=True):
        up = F.interpolate(x0, size=step.size, mode="bicubic", align_corners=False)
        x0 = teacher.denoise(step.alpha * up + step.sigma * eps, step.t)
    assert torch.allclose(pipeline.rollout(noise, xi)[0], x0, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(
        pipeline.rollout(noise, xi, noise_first=False)[0], normals(2, 1, 8, 8)
    )


def test_noise_first_puts_correlated_noise_in() -> None:
    class Zero(torch.nn.Module):
        dtype = torch.float32
        seen: list[Tensor]

        def __init__(self) -> None:
            super().__init__()
            self.seen = []

        def forward(self, x: Tensor, timestep: Tensor, return_dict: bool) -> tuple[Tensor]:
            self.seen.append(x)
            return (torch.zeros_like(x),)

    scale_schedule = [ScaleStep(9, 0.0, 1.0, 16), ScaleStep(5, 0.0, 1.0, 32)]
    for wrong in (False, True):
        network = Zero()
        pipeline = SwDPipeline.__new__(SwDPipeline)
        SwDPipeline.__init__(
            pipeline, None, [asdict(s) for s in scale_schedule], "sample", [1, 32, 32]
        )
        pipeline.unet = network
        pipeline.rollout(normals(64, 1, 32, 32), generator=stream(1), noise_first=wrong)
        x = network.seen[1]
        neighbours = float((x[..., 1:] * x[..., :-1]).mean() / x.square().mean())
        assert neighbours > 0.5 if wrong else abs(neighbours) < 0.02


def test_epsilon_networks_are_damped_at_pure_noise_only() -> None:
    teacher = tiny_teacher("epsilon")
    scale_schedule = make_scale_schedule(teacher, SCHEDULE, limit=10.0)
    assert [s.damping < 1 for s in scale_schedule] == [True, False, False, False]
    first = scale_schedule[0]
    pipeline = build_swd_pipeline(teacher, SCHEDULE, CONFIG)
    x = normals(3, 1, 4, 4)
    free, held = teacher.denoise(x, first.t), pipeline.denoise(first, x)
    mean = torch.tensor(first.mean)
    assert torch.allclose(held - mean, (free - mean) * 10 * first.alpha / first.sigma, atol=1e-2)
    with torch.no_grad():
        before = pipeline.denoise(first, x)
        pipeline.unet.conv_out.bias.add_(0.01)
        moved = (pipeline.denoise(first, x) - before).abs().max()
    assert float(moved) == pytest.approx(0.1, rel=0.01)  # 10 times the error, not 150
    assert all(
        s.damping == 1
        for s in make_scale_schedule(tiny_teacher("v_prediction"), SCHEDULE, limit=10.0)
    )


def test_levels_that_a_teacher_cannot_tell_apart_are_refused() -> None:
    close = make_schedule([(1.0, 8), (0.5, 8), (0.49999, 8)], 8, 2)
    with pytest.raises(InputError, match="same level"):
        make_scale_schedule(tiny_teacher("epsilon"), close)


def test_pipeline_folder_round_trip(tmp_path: Path) -> None:
    pipeline = build_swd_pipeline(tiny_teacher("epsilon"), SCHEDULE, CONFIG)
    pipeline.save_pretrained(tmp_path)
    again = SwDPipeline.from_pretrained(tmp_path)
    first, second = (
        p(batch_size=2, num_inference_steps=4, generator=stream(3), output_type="pt").images
        for p in (pipeline, again)
    )
    assert (
        torch.allclose(first, second, atol=1e-3)
        and first.shape == (2, 1, 8, 8)
        and again.nfe == [4]
    )
    assert json.loads((tmp_path / "model_index.json").read_text())["scale_schedule"][0]["size"] == 4
    with pytest.raises(ValueError, match="this student has"):
        again(num_inference_steps=5)
