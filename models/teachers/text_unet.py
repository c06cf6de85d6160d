"""Text-to-image UNets: ``UNet2DConditionModel`` of Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from models.common.errors import InputError
from models.teachers.conditioning import Condition
from models.teachers.guidance import Guidance, GuidanceRange
from models.teachers.network_call import WEIGHT_WIDTH
from models.teachers.prompts import PromptDenoiser, refuse_options
from models.teachers.unet import UNetDenoiser


class TextUNet(PromptDenoiser):
    """States (C, H, W), conditions from one CLIP. Features of the middle block are (n, F, h, w)."""

    addition_embed_type: str | None = None

    @classmethod
    def from_diffusers(cls, network: nn.Module, *args: Any, **options: Any) -> Self:
        config: Any = network.config
        kind: Any = TextUNetXL if config.get("addition_embed_type") == "text_time" else TextUNet
        if cls is not kind:
            made: Self = kind.from_diffusers(network, *args, **options)
            return made
        return super().from_diffusers(network, *args, **options)

    @classmethod
    def check(cls, network: Any, scheduler: Any) -> None:
        super().check(network, scheduler)
        further = (
            "class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim",
            "addition_embed_type",
        )  # fmt: skip
        expected: dict[str, tuple[Any, ...]] = dict.fromkeys(further, (None,))
        refuse_options(network, expected | {"addition_embed_type": (cls.addition_embed_type,)})
        UNetDenoiser.check_middle(network)

    def embed_guidance(self, weight: Guidance) -> None:
        self.embedded_guidance = weight if isinstance(weight, GuidanceRange) else None

    def add_weight_input(self, network: Any) -> nn.Module:
        """``time_embedding.cond_proj``, as latent consistency models have it (Luo et al. 2023,
        arXiv 2310.04378), with zero weights.
        """
        time = network.time_embedding
        layer = nn.Linear(WEIGHT_WIDTH, time.linear_1.in_features, bias=False)
        nn.init.zeros_(layer.weight)
        time.cond_proj = layer.to(time.linear_1.weight)
        network.register_to_config(time_cond_proj_dim=WEIGHT_WIDTH)
        return layer

    @staticmethod
    def multiple(config: Any) -> int:
        return int(2 ** (len(config.block_out_channels) - 1))

    def middle_block(self) -> nn.Module:
        block: nn.Module = self.network.mid_block
        return block

    @classmethod
    def _encode(cls, pipe: Any, prompts: list[str]) -> dict[str, Tensor]:
        states, _ = pipe.encode_prompt(
            prompts, pipe.text_encoder.device, 1, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": states}


class TextUNetXL(TextUNet):
    """Stable Diffusion XL: states of two CLIPs beside each other, pooled ones of the second. The
    network is also told the size of the image that a state is; the call does that.
    """

    addition_embed_type = "text_time"
    text_parts = frozenset({"tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2"})

    @classmethod
    def check_pipeline(cls, pipe: Any) -> None:
        """The refiner is told an aesthetic score in the place of a target size."""
        if pipe.config.get("requires_aesthetics_score"):
            raise InputError(
                f"teacher {type(pipe).__name__}: requires_aesthetics_score, a refiner of finished "
                "images; expected the base model"
            )

    @classmethod
    def encode_null(cls, pipe: Any, negative: str | None = None) -> Condition | None:
        """Without a negative prompt, zeros where the pipeline says so."""
        empty = cls.encode_prompts(pipe, [negative or ""])
        if negative is not None or not pipe.config.force_zeros_for_empty_prompt:
            return empty
        return Condition({name: torch.zeros_like(value) for name, value in empty.items()})

    @classmethod
    def _encode(cls, pipe: Any, prompts: list[str]) -> dict[str, Tensor]:
        states, _, pooled, _ = pipe.encode_prompt(
            prompts, device=pipe.text_encoder_2.device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}
