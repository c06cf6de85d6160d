"""Networks, autoencoders and folders: what is taken, and the line that refuses the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    LDMPipeline,
    UNet1DModel,
    UNet2DModel,
    VQModel,
)
from torch import Tensor

from models.common.errors import InputError
from models.teachers.codec import Codec, VAECodec
from models.teachers.conditioning import class_condition
from models.teachers.loading import build_denoiser, load_denoiser
from models.teachers.unet2d import null_class_last
from tests.tiny import perturbed, tiny_dit, tiny_unet

BLOCKS: dict[str, Any] = {
    "block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def unet(channels: int = 1, out: int | None = None, **more: Any) -> UNet2DModel:
    settings: dict[str, Any] = {
        "sample_size": 8, "in_channels": channels, "out_channels": out or channels,
        "layers_per_block": 1, "block_out_channels": (8, 16), "attention_head_dim": 8,
        "norm_num_groups": 8, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    torch.manual_seed(0)
    return perturbed(UNet2DModel(**settings | more))


def plain(**options: Any) -> DDPMScheduler:
    return DDPMScheduler(**{"clip_sample": False} | options)


def saved(folder: Path, network: Any, scheduler: Any = None) -> Path:
    DDPMPipeline(unet=network, scheduler=scheduler or plain()).save_pretrained(folder)
    return folder


def test_series(tmp_path: Path) -> None:
    """States (C, L), unbounded values, guidance and features as for images."""
    torch.manual_seed(0)
    network = perturbed(
        UNet1DModel(
            sample_size=32, in_channels=2, out_channels=2, block_out_channels=(8, 16),
            time_embedding_type="positional", use_timestep_embedding=True, layers_per_block=1,
            down_block_types=("DownResnetBlock1D", "DownResnetBlock1D"),
            up_block_types=("UpResnetBlock1D",), mid_block_type="MidResTemporalBlock1D",
            out_block_type="OutConv1DBlock", norm_num_groups=4, act_fn="mish",
        )
    )  # fmt: skip
    teacher = load_denoiser(saved(tmp_path / "t", network))
    assert teacher.shape == (2, 32) and teacher.conditional is False
    x, t = noise(3, 2, 32), 300
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(1000)
    with torch.no_grad():
        theirs = scheduler.step(network(x, torch.full((3,), t)).sample, t, x).pred_original_sample
        torch.testing.assert_close(teacher.denoise(x, t), theirs, rtol=1e-4, atol=1e-4)
    assert float(teacher.decode(100 * x).max()) > 50  # series have no bound
    assert teacher.features(x, t).shape[:2] == (3, 16)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (lambda: unet(2), "2 channels and no autoencoder"),
        (lambda: unet(4), "4 channels and no autoencoder"),
        (lambda: unet(5, 1), "in_channels 5, out_channels 1"),
        (lambda: unet(6, 3), "in_channels 6, out_channels 3"),
        (lambda: unet(1, 2), "in_channels 1, out_channels 2"),
        (lambda: unet(class_embed_type="timestep"), "class_embed_type 'timestep'"),
        (lambda: unet(mid_block_type=None), "mid_block_type null"),
    ],
)
def test_networks_that_a_later_stage_would_die_on(tmp_path: Path, network: Any, words: str) -> None:
    folder = saved(tmp_path / "t", network())
    with pytest.raises(InputError) as caught:
        load_denoiser(folder)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_size_null_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "t", unet())
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": None}))
    with pytest.raises(InputError, match="sample_size null"):
        load_denoiser(folder)


def test_learned_variance_of_a_unet_is_cut_off() -> None:
    network = unet(1, 2)
    teacher = build_denoiser(network, plain(variance_type="learned_range"))
    x = noise(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(teacher.predict(x, 5.0), network(x, 5).sample[:, :1])


@pytest.mark.parametrize("null", [0, 1, 3])
def test_the_null_class_moves_behind_the_others(null: int) -> None:
    """Real classes keep their order; each still gives its own prediction."""
    network, x = tiny_unet(classes=3), noise(4, 1, 8, 8)
    with torch.no_grad():
        before = network(x, 5, class_labels=torch.arange(4)).sample
    assert null_class_last(network, null) == 3
    teacher = build_denoiser(network, plain(), null_class=3)
    assert teacher.num_classes == 3
    order = [i for i in range(4) if i != null]
    with torch.no_grad():
        real = teacher.predict(x[order], 5.0, class_condition(torch.arange(3)))
        torch.testing.assert_close(real, before[order])
        unguided = teacher.output(x[[null]], 5.0, teacher.null_condition(1))
        torch.testing.assert_close(unguided, before[[null]])


def test_null_classes_that_are_not_there() -> None:
    with pytest.raises(InputError, match="null_class = 4: expected 0 to 3"):
        null_class_last(tiny_unet(classes=3), 4)
    with pytest.raises(InputError, match="null_class = 0: this teacher has no classes"):
        null_class_last(tiny_unet(), 0)
    with pytest.raises(InputError, match="null_class = 0: expected null or 3"):
        build_denoiser(tiny_dit(), plain(), null_class=0)


def kl(**more: Any) -> AutoencoderKL:
    torch.manual_seed(5)
    return perturbed(AutoencoderKL(latent_channels=2, **BLOCKS, **more))


@pytest.mark.parametrize(
    "settings",
    [
        {"scaling_factor": 0.5},
        {"scaling_factor": 1.5, "shift_factor": 0.06},
        {"scaling_factor": 0.13, "latents_mean": [0.2, -1.0], "latents_std": [3.0, 0.5]},
    ],
)
def test_codec_centres_and_scales_as_the_pipelines_do(settings: dict[str, Any]) -> None:
    vae, images = kl(**settings), noise(2, 3, 16, 16).clamp(-1, 1)
    codec = VAECodec(vae)
    mean = torch.tensor(settings.get("latents_mean") or [settings.get("shift_factor", 0.0)] * 2)
    std = torch.tensor(settings.get("latents_std") or [1.0, 1.0])
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mode()
        x0 = (latents - mean.view(1, 2, 1, 1)) / std.view(1, 2, 1, 1) * settings["scaling_factor"]
        torch.testing.assert_close(codec.encode(images), x0)
        torch.testing.assert_close(codec.decode(x0), vae.decode(latents).sample.clamp(-1, 1))
    assert codec.latent and not Codec().latent


def test_a_vqvae_is_the_teachers_codec(tmp_path: Path) -> None:
    """LDMPipeline calls its autoencoder vqvae; images are its decoding, not the latents."""
    torch.manual_seed(5)
    vqvae = perturbed(
        VQModel(latent_channels=3, num_vq_embeddings=16, scaling_factor=0.5, **BLOCKS)
    )
    LDMPipeline(vqvae, unet(3), DDIMScheduler(clip_sample=False)).save_pretrained(tmp_path / "t")
    teacher = load_denoiser(tmp_path / "t")
    x0 = noise(2, 3, 8, 8)
    with torch.no_grad():
        expected = vqvae.decode(x0 / 0.5).sample.clamp(-1, 1)
    torch.testing.assert_close(teacher.decode(x0), expected)
    assert expected.shape == (2, 3, 16, 16)
    latents = teacher.encode(expected)
    with torch.no_grad():
        torch.testing.assert_close(latents, vqvae.encode(expected).latents * 0.5)


def test_latents_of_another_width_are_refused(tmp_path: Path) -> None:
    LDMPipeline(kl(), unet(3), DDIMScheduler(clip_sample=False)).save_pretrained(tmp_path / "t")
    with pytest.raises(
        InputError, match="network has 3 channels, the latents of its AutoencoderKL 2"
    ):
        load_denoiser(tmp_path / "t")


@pytest.mark.parametrize("kind", ["bin", "fp16"])
def test_other_weights_are_named_and_the_advice_works(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "t"
    pipeline = DDPMPipeline(unet=unet(), scheduler=plain())
    if kind == "bin":
        pipeline.save_pretrained(folder, safe_serialization=False)
    else:
        pipeline.save_pretrained(folder, variant="fp16")
    with pytest.raises(InputError) as caught:
        load_denoiser(folder)
    message = str(caught.value)
    name = {
        "bin": "diffusion_pytorch_model.bin",
        "fp16": "diffusion_pytorch_model.fp16.safetensors",
    }
    assert f"unet/{name[kind]} is there" in message and "\n" not in message
    exec(message.split('python -c "')[1].removesuffix('"'))
    x = noise(1, 1, 8, 8)
    with torch.no_grad():
        found = load_denoiser(f"{folder}-converted").predict(x, 5.0)
        torch.testing.assert_close(found, pipeline.unet(x, 5).sample, rtol=1e-3, atol=1e-3)


def test_parts_that_would_get_lost_are_refused() -> None:
    from models.teachers.loading import denoiser_of_pipeline

    class Mine(DiffusionPipeline):  # type: ignore[misc]
        def __init__(self, transformer: Any, vae: Any, scheduler: Any, text_encoder: Any = None):
            super().__init__()
            parts = {"transformer": transformer, "vae": vae, "scheduler": scheduler}
            self.register_modules(**parts, text_encoder=text_encoder)

    parts = (tiny_dit(), kl(), DDIMScheduler(clip_sample=False))
    assert denoiser_of_pipeline(Mine(*parts)).codec.latent
    pipeline = Mine(*parts, text_encoder=unet())
    with pytest.raises(InputError, match="has the parts text_encoder"):
        denoiser_of_pipeline(pipeline)
