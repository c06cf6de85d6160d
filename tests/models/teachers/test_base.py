"""One interface over all diffusers models, each through a pipeline folder on disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    FlowMatchEulerDiscreteScheduler,
    PriorTransformer,
)
from torch import Tensor

from models.common.errors import InputError
from models.teachers.base import to_x0, training_target
from models.teachers.conditioning import class_condition
from models.teachers.loading import build_denoiser, load_denoiser
from tasks.utils.atomic import atomic_write_json
from tests.tiny import perturbed, tiny_dit, tiny_teacher, tiny_unet


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def saved(folder: Path, network: Any, scheduler: Any) -> Path:
    DDPMPipeline(unet=network, scheduler=scheduler).save_pretrained(folder)
    return folder


def vae() -> AutoencoderKL:
    settings = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    torch.manual_seed(5)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        latent_channels=2,
        norm_num_groups=4,
        layers_per_block=1,
        **settings,
    )


@pytest.fixture(scope="module")
def dit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dit")
    scheduler = DDIMScheduler(clip_sample=False)
    DiTPipeline(tiny_dit(), vae(), scheduler).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("clip", [False, True])
def test_denoise_is_the_schedulers_own_x0(tmp_path: Path, prediction: str, clip: bool) -> None:
    """Every prediction type at several times, against DDIMScheduler on the same output."""
    network = tiny_unet()
    scheduler = DDPMScheduler(prediction_type=prediction, clip_sample=clip, clip_sample_range=0.7)
    teacher = load_denoiser(saved(tmp_path / "t", network, scheduler))
    assert (teacher.shape, teacher.num_classes, teacher.null_class) == ((1, 8, 8), None, None)
    assert not any(p.requires_grad for p in teacher.parameters())
    own = DDIMScheduler.from_config(scheduler.config)
    own.set_timesteps(1000)
    x = noise(3, 1, 8, 8)
    for t in (999, 500, 3, 0):
        with torch.no_grad():
            output = network(x, t).sample
            expected = own.step(output, t, x).pred_original_sample
            torch.testing.assert_close(teacher.predict(x, t), output)
            found = teacher.denoise(x, t)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert (found.abs() <= 0.7).all() == clip or t == 0


def test_flow_matching(tmp_path: Path) -> None:
    """x_t = (1 - t) x0 + t eps and v = eps - x0; one step of the Euler scheduler to 0 is x0."""
    network, scheduler = tiny_unet(), FlowMatchEulerDiscreteScheduler(shift=3.0)
    teacher = load_denoiser(saved(tmp_path / "t", network, scheduler))
    x, t = noise(3, 1, 8, 8), torch.tensor([1000.0, 437.5, 20.0])
    with torch.no_grad():
        expected = x - (t / 1000).view(-1, 1, 1, 1) * network(x, t).sample
        torch.testing.assert_close(teacher.denoise(x, t), expected)
    levels = teacher.schedule.levels(8)
    scheduler.set_timesteps(
        8
    )  # its last level before 0 differs: it spaces times, not levels, evenly
    assert levels.t[0] == pytest.approx(float(scheduler.timesteps[0]))
    uniform = np.linspace(1, 0, 9)
    np.testing.assert_allclose(levels.sigma, 3 * uniform / (1 + 2 * uniform))
    np.testing.assert_allclose(levels.alpha, 1 - levels.sigma)
    np.testing.assert_allclose(levels.t, 1000 * levels.sigma[:-1])


@pytest.mark.parametrize(
    "prediction", ["epsilon", "v_prediction", "sample", "flow", "edm", "edm_v", "ve"]
)
def test_training_target_is_the_inverse_of_to_x0(prediction: str) -> None:
    x0, eps = noise(2, 1, 4, 4), noise(2, 1, 4, 4, seed=1)
    sigma = torch.tensor(0.6)
    alpha = 1 - sigma if prediction == "flow" else torch.sqrt(1 - sigma**2)
    target = training_target(prediction, x0, eps, alpha, sigma)
    torch.testing.assert_close(
        to_x0(prediction, target, alpha * x0 + sigma * eps, alpha, sigma), x0
    )


def test_class_conditional_dit(dit_folder: Path) -> None:
    """Learned variance is cut off, guidance follows its formula, labels are needed, latents are
    decoded.
    """
    teacher = load_denoiser(dit_folder)
    assert (teacher.shape, teacher.num_classes, teacher.null_class) == ((2, 8, 8), 3, 3)
    x, t, labels = noise(4, 2, 8, 8), 300, torch.tensor([0, 1, 2, 1])
    condition = class_condition(labels)

    def raw(classes: Tensor) -> Tensor:
        return teacher.network(x, torch.full((4,), t), class_labels=classes).sample[:, :2]

    with torch.no_grad():
        conditional, null = raw(labels), raw(torch.full((4,), 3))
        torch.testing.assert_close(teacher.predict(x, t, condition), conditional)
        guided = teacher.predict(x, t, condition, guidance=2.5)
        torch.testing.assert_close(guided, null + 2.5 * (conditional - null), rtol=1e-4, atol=1e-5)
        assert (conditional - null).abs().max() > 0.01
        alpha = float(teacher.scheduler.alphas_cumprod[t]) ** 0.5
        expected = (x - (1 - alpha**2) ** 0.5 * guided) / alpha
        found = teacher.denoise(x, t, condition, guidance=2.5)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        images = teacher.decode(found)
    assert images.shape == (4, 3, 16, 16) and images.abs().max() <= 1
    with pytest.raises(InputError, match=r"a label in 0\.\.2"):
        teacher.predict(x, t)


def test_null_class_of_a_unet(tmp_path: Path) -> None:
    """teacher.json names the class that stands for none; without it, all are real and guidance is
    refused.
    """
    folder = saved(tmp_path / "t", tiny_unet(classes=3), DDPMScheduler(clip_sample=False))
    x, condition = noise(2, 1, 8, 8), class_condition(torch.tensor([0, 2]))
    plain = load_denoiser(folder)
    assert (plain.num_classes, plain.null_class) == (4, None)
    with pytest.raises(InputError, match=r"guidance = 2.0: this teacher has no null class"):
        plain.predict(x, 10, condition, guidance=2.0)
    atomic_write_json(folder / "teacher.json", {"null_class": 3})
    teacher = load_denoiser(folder)
    assert (teacher.num_classes, teacher.null_class) == (3, 3)
    with torch.no_grad():
        conditional, null = (
            teacher.predict(x, 10, condition),
            teacher.predict(x, 10, class_condition(torch.tensor([3, 3]))),
        )
        guided = teacher.predict(x, 10, condition, guidance=2.0)
    torch.testing.assert_close(guided, 2 * conditional - null, rtol=1e-4, atol=1e-5)
    (folder / "teacher.json").write_text("{")
    with pytest.raises(InputError, match=r"teacher\.json: not readable"):
        load_denoiser(folder)


def test_features_are_the_middle_of_the_network_and_differentiable(dit_folder: Path) -> None:
    x = noise(2, 1, 8, 8).requires_grad_()
    found = tiny_teacher().features(x, 100.0)
    assert found.shape == (2, 16, 4, 4)
    found.square().sum().backward()
    assert x.grad is not None and x.grad.abs().min() > 0
    dit = load_denoiser(dit_folder)
    x = noise(2, 2, 8, 8).requires_grad_()
    found = dit.features(x, 100, class_condition(torch.tensor([0, 1])))
    assert found.shape == (2, 16, 4, 4)  # 4 x 4 patches of 2 x 2
    local = torch.autograd.grad(found.sum(), x)[0]
    assert local.abs().min() > 0
    assert not dit.network.transformer_blocks[1]._forward_hooks


def test_features_of_a_dit_keep_their_place() -> None:
    """Before any attention, a changed patch changes only its own token."""
    dit = build_denoiser(tiny_dit(), DDIMScheduler())
    embed = torch.nn.Identity()
    dit.network.transformer_blocks[1].forward = lambda tokens, **_: embed(tokens)
    dit.network.transformer_blocks[0].forward = lambda tokens, **_: tokens
    x, condition = noise(1, 2, 8, 8), class_condition(torch.tensor([0]))
    changed = x.clone()
    changed[:, :, 2:4, 6:8] += 1.0  # patch row 1, column 3
    moved = (dit.features(changed, 5, condition) - dit.features(x, 5, condition)).abs().sum(1)[0]
    assert moved[1, 3] > 0.01 and moved.sum() == moved[1, 3]


def test_what_is_no_teacher_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    wrong = PriorTransformer(
        num_attention_heads=2, attention_head_dim=4, num_layers=1, embedding_dim=4,
        num_embeddings=2, additional_embeddings=2,
    )  # fmt: skip
    conditioned = saved(tmp_path / "condition", wrong, DDPMScheduler())
    folder = saved(tmp_path / "pickled", tiny_unet(), DDPMScheduler())
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(tiny_unet().state_dict(), file.with_suffix(".bin"))
    file.unlink()
    cases = {
        tmp_path / "empty": "no model_index.json",
        tmp_path / "missing": "opens there",
        conditioned: "denoiser PriorTransformer; expected .*UNet2DModel",
        folder: "safetensors",
    }
    for source, message in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            load_denoiser(source)
        assert "\n" not in str(caught.value) and str(source) in str(caught.value)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "t", tiny_unet(), DDPMScheduler())
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(InputError, match="opens there"):
        load_denoiser(folder)


def test_schedulers_without_levels_are_refused() -> None:
    scheduler = DDPMScheduler()
    scheduler.register_to_config(prediction_type="score")
    with pytest.raises(InputError, match="prediction_type 'score'"):
        build_denoiser(tiny_unet(), scheduler)


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    scheduler = DDPMScheduler(clip_sample=False)
    first = saved(tmp_path / "a", tiny_unet(), scheduler)
    shutil.copytree(first, tmp_path / "b")
    DDIMPipeline(unet=tiny_unet(), scheduler=scheduler).save_pretrained(tmp_path / "c")
    known = load_denoiser(first).fingerprint()
    in_memory = build_denoiser(tiny_unet(), scheduler)
    assert len(known) == 64
    assert load_denoiser(tmp_path / "b").fingerprint() == known == in_memory.fingerprint()
    with torch.no_grad():
        in_memory.network.conv_out.bias[0] += 1e-6
    assert in_memory.fingerprint() != known
    other = build_denoiser(tiny_unet(), DDPMScheduler(clip_sample=False, beta_end=0.021))
    assert other.fingerprint() != known
    classes = build_denoiser(tiny_unet(classes=2), scheduler)
    guided = build_denoiser(tiny_unet(classes=2), scheduler, null_class=2)
    assert classes.fingerprint() != guided.fingerprint()
    first, second = vae(), vae()
    with torch.no_grad():
        second.decoder.conv_out.bias[0] += 1e-3
    latent = [build_denoiser(tiny_dit(), scheduler, part).fingerprint() for part in (first, second)]
    assert latent[0] != latent[1]
    assert latent[0] == build_denoiser(tiny_dit(), scheduler, vae()).fingerprint()
    shifted = [
        build_denoiser(tiny_unet(), FlowMatchEulerDiscreteScheduler(shift=shift)).fingerprint()
        for shift in (1.0, 3.0)
    ]
    assert shifted[0] != shifted[1]


def test_levels_end_at_clean_data() -> None:
    levels = tiny_teacher().schedule.levels(10)
    assert levels.steps == 10 and (levels.alpha[-1], levels.sigma[-1]) == (1.0, 0.0)
    np.testing.assert_allclose(levels.alpha**2 + levels.sigma**2, 1.0)
    assert np.all(np.diff(levels.alpha) > 0) and levels.alpha[0] < 0.01


def test_shaken_networks_really_see_their_labels() -> None:
    """Guards the other tests: with adaLN-zero left at zero a DiT would ignore its input."""
    dit = perturbed(tiny_dit())
    x = noise(1, 2, 8, 8)
    with torch.no_grad():
        a, b = (
            dit(x, torch.tensor([5]), class_labels=torch.tensor([label])).sample for label in (0, 1)
        )
    assert (a - b).abs().max() > 1e-3
