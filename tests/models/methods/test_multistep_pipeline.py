"""The pipeline of students that predict the clean state: its two kinds of noise, against the chain
and by hand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from models.methods.multistep_pipeline import MultistepPipeline
from models.sampling.chain import Chain
from models.sampling.grids import coarse_grid
from models.teachers.base import Denoiser
from models.teachers.schedule import Levels
from tests.models.tinypaths import KINDS, teacher_of

GRID = [0, 3, 4, 9, 12]


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pipeline_of(teacher: Denoiser, network: Any = None, **options: Any) -> MultistepPipeline:
    """A student of the teacher's own network at four times of its chain of 12 steps."""
    levels = teacher.schedule.levels(12)
    rows = [[levels.t[k], levels.alpha[k], levels.sigma[k]] for k in GRID[:-1]]
    return MultistepPipeline(
        unet=network or teacher.network,
        levels={"4": rows},
        prediction_type=teacher.prediction_type,
        shape=list(teacher.shape),
        num_classes=teacher.num_classes,
        **{"clip": teacher.clip} | options,
    )


def coarse_chain(teacher: Denoiser) -> Chain:
    """DDIM whose own levels are the four times."""
    fine = teacher.schedule.levels(12)
    return Chain(Levels(fine.t[GRID[:-1]], fine.alpha[GRID], fine.sigma[GRID]), eta=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_predicted_noise_is_ddim_on_the_coarse_grid(kind: str) -> None:
    teacher = teacher_of(kind)
    chain, noise = coarse_chain(teacher), normals(3, *teacher.shape)
    condition = teacher.default_condition(3)
    with torch.no_grad():
        x = noise
        for k in range(4):
            x0 = teacher.denoise(x, float(chain.levels.t[k]), condition)
            x = float(chain.a[k]) * x + float(chain.b[k]) * x0
    found, seen = pipeline_of(teacher, noise="predicted").rollout(noise, condition=condition)
    scale = float(x.abs().max())
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5 * scale)
    assert len(seen) == 4 and torch.equal(found, seen[-1])


@pytest.mark.parametrize("clip", [None, 0.5])
def test_predicted_noise_is_diffusers_ddim(clip: float | None) -> None:
    """With evenly spaced times; where x0 is clipped, its noise is computed again from it."""
    teacher = teacher_of("epsilon")
    levels = teacher.schedule.levels(5)
    scheduler = DDIMScheduler(
        timestep_spacing="trailing", clip_sample=clip is not None, clip_sample_range=clip or 1.0
    )
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == levels.t.tolist()
    rows = np.stack([levels.t, levels.alpha[:-1], levels.sigma[:-1]], 1).tolist()
    pipeline = MultistepPipeline(
        teacher.network, {"5": rows}, shape=[1, 8, 8], clip=clip, noise="predicted"
    )
    x = noise = normals(2, 1, 8, 8)
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = teacher.network(x, t).sample
            x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
    found = pipeline.rollout(noise)[0]
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4 * float(x.abs().max()))


def test_fresh_noise_follows_the_generator_or_is_given() -> None:
    """Algorithm 1: x = alpha x0 + sigma eps at the next time; the first step sees the start."""
    teacher = teacher_of("v_prediction")
    pipeline, noise = pipeline_of(teacher), normals(2, 1, 8, 8)
    given = [normals(2, 1, 8, 8, seed=seed) for seed in (1, 2, 3)]
    x = noise
    with torch.no_grad():
        for level, eps in zip(pipeline.levels(4), [*given, None], strict=True):
            x0 = teacher.denoise(x, level.t)
            if eps is not None:
                after = pipeline.levels(4)[pipeline.levels(4).index(level) + 1]
                x = after.alpha * x0 + after.sigma * eps
    torch.testing.assert_close(pipeline.rollout(noise, given)[0], x0, rtol=1e-5, atol=1e-5)
    a, b, c = (
        pipeline.rollout(noise, generator=torch.Generator().manual_seed(seed))[0]
        for seed in (0, 0, 1)
    )
    assert torch.equal(a, b) and not torch.allclose(a, c, atol=1e-3)


def test_the_weights_of_a_level() -> None:
    """skip x + out x0; levels of three numbers have 0 and 1."""
    teacher = teacher_of("v_prediction")
    x, (t, alpha, sigma) = normals(2, 1, 8, 8), (500.0, 0.5, 0.75**0.5)
    levels = {"1": [[t, alpha, sigma, 0.25, 0.5]], "2": [[t, alpha, sigma]] * 2}
    pipeline = MultistepPipeline(
        teacher.network, levels, prediction_type="v_prediction", shape=[1, 8, 8]
    )
    plain, weighted = (pipeline.denoise(pipeline.levels(n)[0], x) for n in (2, 1))
    torch.testing.assert_close(weighted, 0.25 * x + 0.5 * plain)
    again = pipeline.with_network(teacher.network)
    assert again._levels == pipeline._levels and again.config.levels == levels
    with pytest.raises(ValueError, match="expected t, alpha, sigma, or skip and out too"):
        MultistepPipeline(teacher.network, {"1": [[t, alpha, sigma, 0.25]]})


class Seen(nn.Module):
    """A network that keeps what it is given."""

    dtype = torch.float32

    def forward(self, x: Tensor, t: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        self.last = x
        return (x[:, :1],)


def test_the_number_of_steps_is_an_input() -> None:
    network, x = Seen(), normals(2, 1, 6)
    levels = {"1": [[9, 0.6, 0.8]], "4": [[9, 0.6, 0.8]] * 4}
    pipeline = MultistepPipeline(network, levels, shape=[1, 6], steps_input=True)
    for n in (1, 4):
        pipeline.denoise(pipeline.levels(n)[0], x)
        assert network.last.shape == (2, 2, 6) and torch.equal(network.last[:, :1], x)
        assert (network.last[:, 1] == 1 / n).all()


def test_an_unknown_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="noise 'none': expected fresh or predicted"):
        pipeline_of(teacher_of("flow"), noise="none")
    assert coarse_grid(coarse_chain(teacher_of("flow")), 4).tolist() == [0, 1, 2, 3, 4]
