"""Networks and pipelines small enough to build in every test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DiTTransformer2DModel, UNet2DModel
from torch import nn

from models.teachers.architectures import build_scheduler, build_unet
from models.teachers.base import Denoiser
from models.teachers.loading import build_denoiser, load_denoiser
from tasks.utils.atomic import atomic_write_json


def tiny_unet(size: int = 8, classes: int | None = None, seed: int = 0) -> UNet2DModel:
    """A UNet of one-channel images with all weights random, the zero-initialised ones too."""
    torch.manual_seed(seed)
    return perturbed(build_unet(size, 1, (8, 16), 1, classes))


def score_network(skips: bool = False, **more: Any) -> UNet2DModel:
    """As the published NCSN++: fourier features of log s, an output over s."""
    torch.manual_seed(0)
    kinds = ("SkipDownBlock2D", "SkipUpBlock2D") if skips else ("DownBlock2D", "UpBlock2D")
    network = UNet2DModel(
        sample_size=8, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        time_embedding_type="fourier", center_input_sample=True, attention_head_dim=8,
        down_block_types=(kinds[0],) * 2, up_block_types=(kinds[1],) * 2, **more,
    )  # fmt: skip
    network.time_proj.weight.data *= 0.03  # a smooth function of s, as after training
    return perturbed(network)


def tiny_dit(seed: int = 0, dropout: float = 0.0) -> DiTTransformer2DModel:
    """A class-conditional DiT (3 classes) of 2-channel 8x8 latents that also predicts a
    variance.
    """
    torch.manual_seed(seed)
    settings = {
        "in_channels": 2,
        "out_channels": 4,
        "sample_size": 8,
        "patch_size": 2,
        "num_layers": 3,
    }
    heads = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_embeds_ada_norm": 3,
        "dropout": dropout,
    }
    return perturbed(DiTTransformer2DModel(**settings, **heads))


def perturbed(network: Any) -> Any:
    """The network with a little noise on every weight, so that none is zero by its
    initialisation.
    """
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return network.eval()


def tiny_teacher(prediction: str = "v_prediction", size: int = 8, seed: int = 0) -> Denoiser:
    """An unconditional teacher in memory; ``prediction`` as in params.yaml."""
    return build_denoiser(tiny_unet(size, seed=seed), build_scheduler(prediction, "linear"))


def save_teacher(
    root: Path, classes: int | None = None, seed: int = 0, prediction: str = "v_prediction"
) -> Denoiser:
    """Write data/teacher under ``root`` as the teacher stage does, and load it."""
    folder = root / "data" / "teacher"
    network = tiny_unet(classes=classes, seed=seed)
    DDPMPipeline(unet=network, scheduler=build_scheduler(prediction, "linear")).save_pretrained(
        folder
    )
    atomic_write_json(folder / "teacher.json", {"null_class": classes})
    return load_denoiser(folder)


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
