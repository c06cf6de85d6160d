"""Scale-wise Sig-DEG students: they start as the teacher at both sizes, are saved, trained at the
size of each step, and refused where the teacher cannot be asked.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from models.common.errors import InputError
from models.distil import MemoryTools
from models.methods.base import MethodContext
from models.methods.export import export_pipeline, open_student
from models.methods.losses import path_loss
from models.methods.scoring import energy_score
from models.methods.sigdeg.build import make_step_schedule, plans_of, untrained_rollout
from models.methods.sigdeg.costs import SigDEGCosts
from models.methods.sigdeg.method import SigDEG
from models.methods.sigdeg.pipeline import reduced
from models.methods.sigdeg.scales import at_size
from models.teachers.gaussian_field import FieldTeacher, power_law
from models.teachers.loading import build_denoiser
from models.training.loop import LoopConfig, TrainState, train
from tests.models.methods.made import sigdeg, sigdeg_config
from tests.models.methods.sigdeg.test_scales import config_of, spec_of
from tests.models.tinypaths import batch_of, series_teacher, teacher_of
from tests.models.tinypaths import spec_of as tiny_spec
from tests.tiny import perturbed, tiny_unet

SCALES = {"pairs": ((1.0, 4), (0.9, 8))}
SCALE_WISE = {"nfe": (4, 2), "conditioning_limit": None, "window_start": 4, "scales": SCALES}
SCORE = {"score": 1.0, "path": 0.5, "score_patches": (0, 4)}


def method_of(kind: str = "v_prediction", **choices: Any) -> SigDEG:
    teacher = teacher_of(kind)
    return sigdeg(teacher, tiny_spec(teacher), **(SCALE_WISE | choices))


def factors(method: SigDEG, nfe: int) -> list[int]:
    return [step.reduction for step in method.pipeline.plan(nfe)]


def start(shape: tuple[int, ...], count: int, normals: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(3, *shape, generator=generator)
    return noise, torch.randn(3, count, normals, *shape, generator=generator)


@pytest.mark.parametrize("kind", ["v_prediction", "flow", "conditional"])
def test_untrained_is_the_teacher_at_both_sizes(kind: str) -> None:
    """With the signature, the width and the previous output as inputs, all unseen as yet."""
    method = method_of(kind, memory=True, order=3, look_ahead=0.5)
    assert factors(method, 4)[-1] == 1 and 2 in factors(method, 4) and 2 in factors(method, 2)
    noise, xi = start(method.teacher.shape, 4)
    condition = method.teacher.default_condition(3)
    found = method.pipeline.rollout(noise, xi, condition, 4)[1]
    with torch.no_grad():
        expected = untrained_rollout(method.teacher, method.step_schedules[4], noise, xi, condition)
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * scale)
    seen = []
    hook = method.pipeline.unet.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[-1]))
    method.pipeline.rollout(noise, xi, condition, 4)
    hook.remove()
    assert seen == [8 // factor for factor in factors(method, 4)]


def test_damping_is_that_of_the_small_images_level() -> None:
    """An epsilon network: the limit holds sigma / alpha of what the network sees."""
    method = method_of("epsilon", conditioning_limit=2.0)
    steps = method.pipeline.plan(4)
    hit = [step.sigma > 2.0 * step.alpha for step in steps]
    assert method.pipeline.network_calls(4) == 4 + sum(hit) and any(hit)
    noise, xi = start(method.teacher.shape, 4)
    assert method.pipeline.rollout(noise, xi, None, 4)[0].isfinite().all()


def test_round_trip(tmp_path: Path) -> None:
    method = method_of("conditional", trainable="lora", lora_rank=2)
    perturbed(method.pipeline.unet)
    exported = export_pipeline(method.pipeline)
    exported.save_pretrained(tmp_path)
    again = open_student(tmp_path)
    assert again.plan(4) == method.pipeline.plan(4)
    x, y = (
        pipe(3, 4, class_labels=1, generator=torch.Generator().manual_seed(0), output_type="pt")
        for pipe in (exported, again)
    )
    torch.testing.assert_close(x.images, y.images, rtol=0, atol=1e-5)
    assert x.images.shape == (3, 1, 8, 8)


def test_losses_compare_each_step_at_its_size() -> None:
    """(8) and (17) of whole rollouts: steps at half size by their low-pass parts."""
    method = method_of(**SCORE)
    perturbed(method.pipeline.unet)
    batch = batch_of(method.teacher, tiny_spec(method.teacher), 4)
    total, terms = method.loss("student", batch, torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    torch.randint(1, (1,), generator=generator)
    schedule = method.step_schedules[4]
    draws = []
    for _ in range(2):
        xi = schedule.with_noise(schedule.features(batch.xi), generator)
        draws.append(method.pipeline.rollout(batch.Y[:, 0], xi, None, 4)[1][:, 1:])
    path = score = 0.0
    for i, factor in enumerate(factors(method, 4)):
        p, q, y = (reduced(v[:, i : i + 1], factor) for v in (*draws, batch.Y[:, 1:]))
        weight = schedule.weights[i : i + 1]
        path += float(path_loss(p, y, weight).detach()) / 4
        score += float(energy_score(p, q, y, weight, 1.0, (0, 4)).detach()) / 4
    path_4, score_4 = (float(terms[name].detach()) for name in ("path_4", "score_4"))
    assert path_4 == pytest.approx(path, rel=1e-4)
    assert score_4 == pytest.approx(score, rel=1e-4)
    assert float(total.detach()) == pytest.approx(0.5 * path + score, rel=1e-4)


def test_it_learns() -> None:
    method = method_of(nfe=(2,), window_until=0.0)
    assert factors(method, 2) == [2, 1]
    batch = batch_of(method.teacher, tiny_spec(method.teacher), 8)
    state = TrainState(method, LoopConfig(steps=15, learning_rate=3e-3, schedule="constant"))
    reports = train(method, lambda step, micro, update: batch._replace(step=step), state)
    losses = [report.terms["student/loss"] for report in reports]
    assert np.mean(losses[-3:]) < 0.85 * losses[0]


def test_costs_have_sizes() -> None:
    """What is counted is what is called, size by size."""
    method = method_of(memory=True)
    costs = SigDEGCosts(method.context)
    for nfe in (4, 2):
        sizes = [call.size or 8 for call in costs.sampling(nfe)]
        assert sizes == [8 // factor for factor in factors(method, nfe)]
    (role, calls), *_ = costs.updates(0)
    assert role == "student" and [call.size or 8 for call in calls][:4] == [
        8 // factor for factor in factors(method, 4)
    ]
    checks = costs.preparation(100)
    assert {call.size for call in checks} == {None, 4}


def checked(teacher: FieldTeacher, count: int = 256, **scales: Any) -> list[dict[str, Any]]:
    spec = spec_of(teacher, 4)
    config = config_of(spec, 4, 3)
    config = config.model_copy(update={"scales": config.scales.model_copy(update=scales)})
    images = torch.randn(count, 64, generator=torch.Generator().manual_seed(0)).double()
    images = images @ torch.linalg.cholesky(power_law(8).covariance()).T
    states = images.reshape(-1, 1, 8, 8).float().numpy()
    context = MethodContext(teacher, config, spec, tools=MemoryTools(states))
    found: list[dict[str, Any]] = SigDEG.prepare(context)["scales"]
    return found


def test_the_teachers_errors_at_small_sizes_are_measured() -> None:
    """Of a field they are traces of known covariances: of the small field's posterior."""
    teacher = FieldTeacher(power_law(8))
    for row in checked(teacher):
        small = power_law(8).means(2).power
        a, s = 1 - row["sigma"], row["sigma"]
        expected = 4 * np.mean(small * s**2 / (a**2 * small + s**2))
        assert row["size"] == 4 and row["small"] == pytest.approx(expected, rel=0.1)
        assert 0.95 < row["small"] / row["full"] < 2.0


def test_a_teacher_that_does_not_know_the_size_is_refused() -> None:
    teacher = FieldTeacher(power_law(8))
    teacher.network.fields[4] = power_law(4, exponent=0.0, variance=10.0)
    with pytest.raises(InputError, match=r"at size 4, .* times that at full size.*does not know"):
        checked(teacher)
    assert checked(teacher, limit=1e9)


def test_what_is_not_supported() -> None:
    """Series, latents, levels that the teacher does not have, other pipelines: one line each."""
    teacher = FieldTeacher(power_law(8))
    step = plans_of(teacher, spec_of(teacher, 4), config_of(spec_of(teacher, 4), 4, 0))[4][2]
    coarse = teacher_of("v_prediction")
    assert at_size(replace(step, alpha=1.0, sigma=0.03), 2, 1.0, coarse).t < 10
    with pytest.raises(InputError, match="alpha / sigma = 200 .* nearest level has 100; expected"):
        at_size(replace(step, alpha=1.0, sigma=0.01), 2, 1.0, coarse)
    series = series_teacher()
    spec, config = tiny_spec(series), sigdeg_config(**SCALE_WISE)
    with pytest.raises(InputError, match="states are .*; expected square images, or no pairs"):
        plans_of(series, spec, config)
    plain = teacher_of("v_prediction")
    vae = AutoencoderKL(latent_channels=1, block_out_channels=(8,), norm_num_groups=4)
    latent = build_denoiser(tiny_unet(), plain.scheduler, vae)
    with pytest.raises(InputError, match="a latent reduced is not the latent of the reduced"):
        plans_of(latent, tiny_spec(latent), config)
    odd = sigdeg_config(**SCALE_WISE | {"scales": {"pairs": ((1.0, 1), (0.5, 8))}})
    with pytest.raises(InputError, match="size 1; expected a multiple of 2, the network's stride"):
        plans_of(plain, tiny_spec(plain), odd)
    method = method_of(inputs="none")
    with pytest.raises(ValueError, match="it is scale-wise .* SigDEGScheduler's steps keep"):
        method.pipeline.stock_sampler()
    with pytest.raises(InputError, match="score_patches: 8 does not tile states of"):
        method_of(score=1.0, score_patches=(0, 8))


def test_without_pairs_nothing_changes() -> None:
    teacher = teacher_of("v_prediction")
    spec = tiny_spec(teacher)
    plain = make_step_schedule(spec, 4, sigdeg_config(nfe=(4,))).steps
    one = sigdeg_config(nfe=(4,), scales={"pairs": ((1.0, 8),)}, window_start=4)
    assert plans_of(teacher, spec, one)[4] == plain
    assert {step.reduction for step in plain} == {1}
