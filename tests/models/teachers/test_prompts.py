"""Every family of text-to-image models against its own stock pipeline; tiny random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler
from torch import Tensor

from models.methods.multistep_pipeline import Level, MultistepPipeline
from models.methods.student_network import student_network
from models.sampling.solvers import ancestral
from models.teachers.conditioning import ConditionTable
from models.teachers.loading import denoiser_of_pipeline
from tests.models.teachers.pipelines import build
from tests.models.teachers.texts import PIXELS, prompt_teacher, sampled

NAMES = ["sd", "sd2", "sdxl", "sd3", "flux", "pixart", "pixart_1024", "sana", "edm"]
STEPWISE = [name for name in NAMES if name != "edm"]
GUIDED = [name for name in NAMES if name != "flux"]
STEPS = 5
GUIDANCE = 3.0
MLP = ("ff.net.0.proj", "ff.net.2")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def level_of(teacher: Any, k: int = 2) -> Level:
    levels = teacher.schedule.levels(STEPS)
    return Level(float(levels.t[k]), float(levels.alpha[k]), float(levels.sigma[k]))


def student_of(teacher: Any, network: Any) -> MultistepPipeline:
    return MultistepPipeline(
        network,
        prediction_type=teacher.prediction_type,
        shape=list(teacher.shape),
        vae=teacher.codec.vae,
    )


@pytest.mark.parametrize("size", [PIXELS, 2 * PIXELS])
@pytest.mark.parametrize("name", [*STEPWISE, "pixart_sigma"])
def test_the_chain_is_the_stock_pipelines_own_sampling(name: str, size: int) -> None:
    """eta = 0, with guidance, from the same latents over the same steps; also at another size."""
    pipe, teacher = prompt_teacher(name, size)
    x = noise(2, *teacher.shape)
    rows = teacher.encode_condition(torch.tensor([0, 1]))
    levels = teacher.schedule.levels(STEPS)

    def denoise(x: Tensor, k: int) -> Tensor:
        return teacher.denoise(x, float(levels.t[k]), rows, GUIDANCE)  # type: ignore[no-any-return]

    with torch.no_grad():
        mine = ancestral(denoise, levels, x, lambda: x, eta=0.0)
        theirs = sampled(pipe, teacher, x, STEPS, guidance_scale=GUIDANCE)
    scale = float(theirs.abs().max())
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 * max(1.0, scale))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_edm_models_in_the_coordinates_of_their_input(spacing: str, prediction: str) -> None:
    """Euler's steps of the stock pipeline, whose states are x0 + s eps, from the same noise."""
    _, plain = prompt_teacher("sdxl")
    pipe = build("edm")[0]
    options = {"sigma_schedule": spacing, "prediction_type": prediction, "sigma_data": 0.7}
    pipe.scheduler = EDMEulerScheduler(**options, sigma_max=30.0)
    teacher: Any = denoiser_of_pipeline(pipe, size=PIXELS)
    teacher.set_conditions(plain.conditions)
    assert teacher.prediction_type == {"epsilon": "edm", "v_prediction": "edm_v"}[prediction]
    rows, x = teacher.encode_condition(torch.tensor([0, 1])), noise(2, *teacher.shape)
    levels = teacher.schedule.levels(STEPS)

    def denoise(x: Tensor, k: int) -> Tensor:
        return teacher.denoise(x, float(levels.t[k]), rows, GUIDANCE)  # type: ignore[no-any-return]

    start = x * (30.0**2 + 0.7**2) ** 0.5 / pipe.scheduler.init_noise_sigma
    with torch.no_grad():
        mine = ancestral(denoise, levels, x, lambda: x, eta=0.0)
        theirs = sampled(pipe, teacher, start, STEPS, guidance_scale=GUIDANCE)
        images = pipe.vae.decode(theirs / pipe.vae.config.scaling_factor + 0.06).sample
    scale = max(1.0, float(theirs.abs().max()))
    torch.testing.assert_close(0.7 * mine, theirs, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(teacher.decode(mine), images.clamp(-1, 1), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        latents = (pipe.vae.encode(images).latent_dist.mode() - 0.06) * 1.5
        torch.testing.assert_close(0.7 * teacher.encode(images), latents)


@pytest.mark.parametrize("name", GUIDED)
def test_guidance_leads_away_from_the_null_condition(name: str) -> None:
    """With weight 0 it is the null condition's own answer, and prompts matter."""
    _, teacher = prompt_teacher(name)
    x, t = noise(2, *teacher.shape), 500.0
    rows = teacher.encode_condition(torch.tensor([0, 1]))
    with torch.no_grad():
        null = teacher.output(x, t, teacher.null_condition(2))
        torch.testing.assert_close(teacher.predict(x, t, rows, 0.0), null, rtol=1e-4, atol=1e-5)
        first, second = (
            teacher.output(x[:1], t, teacher.encode_condition(torch.tensor([i]))) for i in (0, 1)
        )
    assert (first - second).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["sdxl", "sd3", "sana"])
def test_negative_prompts_are_encoded_as_the_stock_pipeline_does(name: str) -> None:
    """One step from noise, whose answer the null condition changes."""
    pipe, teacher = prompt_teacher(name)
    known, x = teacher.conditions, noise(2, *teacher.shape)
    teacher.set_conditions(ConditionTable(known.rows, teacher.encode_null(pipe, "a dog")))
    levels = teacher.schedule.levels(1)
    rows = teacher.encode_condition(torch.tensor([0, 1]))
    with torch.no_grad():
        mine = teacher.denoise(x, float(levels.t[0]), rows, GUIDANCE)
        theirs = sampled(pipe, teacher, x, 1, guidance_scale=GUIDANCE, negative_prompt="a dog")
        teacher.set_conditions(known)
        other = teacher.denoise(x, float(levels.t[0]), rows, GUIDANCE)
    scale = max(1.0, float(theirs.abs().max()))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 * scale)
    assert (mine - other).abs().max() > 1e-4 * scale


@pytest.mark.parametrize("name", ["sd3", "flux", "sana"])
def test_latents_become_the_stock_pipelines_images(name: str) -> None:
    """Also with a shift, and of the deep-compression kind; encoding leads back to their scale."""
    pipe, teacher = prompt_teacher(name)
    x = noise(2, *teacher.shape)
    with torch.no_grad():
        latents, images = (
            sampled(pipe, teacher, x, 1, output_type=kind) for kind in ("latent", "pt")
        )
    torch.testing.assert_close((teacher.decode(latents) + 1) / 2, images, rtol=1e-4, atol=1e-5)
    assert teacher.encode(2 * images - 1).shape == x.shape


@pytest.mark.parametrize("name", NAMES)
def test_students_call_networks_as_teachers_do(name: str) -> None:
    """Widened networks ignore the added channels until they are trained, at several sizes."""
    _, teacher = prompt_teacher(name)
    channels = teacher.shape[0]
    wide = student_network(teacher, channels + 3).eval()
    pipeline, level = student_of(teacher, wide), level_of(teacher)
    rows = teacher.encode_condition(torch.tensor([1, 0]))
    for side in (teacher.shape[1], 2 * teacher.stride):
        x = noise(2, channels, side, side)
        inputs = torch.cat([x, noise(2, 3, side, side, seed=1)], 1)
        with torch.no_grad():
            found = pipeline.network_x0(wide, inputs, x, level, rows)
            torch.testing.assert_close(found, teacher.denoise(x, level.t, rows))


@pytest.mark.parametrize("name", NAMES)
def test_features_are_the_middle_blocks(name: str) -> None:
    """(n, F, h, w): a network whose middle block gives zeros has features of zero; they differ
    between samples, and gradients go through them.
    """
    _, teacher = prompt_teacher(name)
    rows = teacher.encode_condition(torch.tensor([0, 1]))
    for side in (teacher.shape[1], 2 * teacher.stride):
        x = noise(2, teacher.shape[0], side, side).requires_grad_()
        features = teacher.features(x, 300.0, rows)
        assert features.dim() == 4 and len(features) == 2
        assert side % features.shape[2] == 0 and features.shape[2] == features.shape[3]
        assert (features[0] - features[1]).abs().max() > 1e-4
        (gradient,) = torch.autograd.grad(features[0].square().sum(), x)
        assert gradient[0].abs().max() > 0 == gradient[1].abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_adapters_reach_attention_and_mlp_and_all_learn(name: str) -> None:
    _, teacher = prompt_teacher(name)
    network: Any = student_network(teacher, teacher.shape[0], "lora", rank=2)
    adapted = {n.rpartition(".lora_B")[0] for n, _ in network.named_parameters() if "lora_B" in n}
    mlp = ("ff.conv_inverted", "ff.conv_point") if name == "sana" else MLP
    for end in ("to_q", "to_k", "to_v", "to_out.0", *mlp):
        assert any(layer.endswith(end) for layer in adapted), end
    pipeline, x = student_of(teacher, network), noise(2, *teacher.shape)
    with torch.no_grad():  # B starts at zero, and A has no gradient then
        for n, p in network.named_parameters():
            if "lora_B" in n:
                p.normal_(std=0.1)
    rows = teacher.encode_condition(torch.tensor([0, 1]))
    pipeline.network_x0(network, x, x, level_of(teacher), rows).square().sum().backward()
    trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
    silent = [n for n, p in trained.items() if p.grad is None or not p.grad.abs().max() > 0]
    assert len(trained) > len(adapted) and silent == []


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    _, teacher = prompt_teacher(name)
    rows, x = teacher.encode_condition(torch.tensor([0, 1])), noise(2, *teacher.shape)
    gradients = []
    for checkpointing in (False, True):
        network: Any = student_network(teacher, teacher.shape[0])
        if checkpointing:
            network.enable_gradient_checkpointing()
            assert network.is_gradient_checkpointing
        pipeline = student_of(teacher, network)
        pipeline.network_x0(network, x, x, level_of(teacher), rows).square().sum().backward()
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for n, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][n], gradient, rtol=1e-4, atol=1e-5, msg=n)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_weights_and_autocast(name: str) -> None:
    """States stay float32; the answer is float32's up to bfloat16's rounding."""
    _, teacher = prompt_teacher(name)
    rows, x, t = teacher.encode_condition(torch.tensor([0, 1])), noise(2, *teacher.shape), 300.0
    with torch.no_grad():
        exact = teacher.output(x, t, rows)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = teacher.output(x, t, rows)
        teacher.network.to(torch.bfloat16)
        half = teacher.output(x, t, rows)
    for found in (mixed, half):
        assert found.dtype == torch.float32
        assert (found - exact).abs().max() < 0.1 * exact.abs().max()
        assert not torch.equal(found, exact)
