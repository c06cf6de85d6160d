"""FLUX.1: ``FluxTransformer2DModel``, rectified flow over packed tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.common.errors import InputError
from models.teachers.base import LORA_TARGETS
from models.teachers.conditioning import Condition
from models.teachers.guidance import WEIGHTS, Guidance, GuidanceRange, asked_weights, with_weights
from models.teachers.prompts import default_of, refuse_options
from models.teachers.transformer import TransformerDenoiser

SIDE = 128  # of a latent, what the stock pipeline makes where nobody says a size


class Flux(TransformerDenoiser):
    """States (C, H, W) are unpacked latents; the call makes tokens of 2 x 2 entries. Guidance is an
    input of the network, where it has one, and there is no null condition: a weight is put into the
    condition as ``guidance``.
    """

    null_prompt = None
    text_parts = frozenset({"tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2"})
    input_layer = "x_embedder"
    lora_targets = (
        *LORA_TARGETS, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "proj_mlp",
        "proj_out",
    )  # fmt: skip

    @classmethod
    def check(cls, network: Any, scheduler: Any) -> None:
        super().check(network, scheduler)
        refuse_options(network, {"patch_size": (1,)})

    @classmethod
    def sized(cls, network: Any, pixels: int, size: int | None) -> tuple[int, ...]:
        if size is None:
            return cls.state_channels(network.config), SIDE, SIDE
        return super().sized(network, pixels, size)

    @staticmethod
    def state_channels(config: Any) -> int:
        return int(config.in_channels) // 4

    def input_channels(self, network: Any) -> int:
        return self.state_channels(network.config)

    @staticmethod
    def multiple(config: Any) -> int:
        return 2

    def blocks(self) -> list[nn.Module]:
        return [*self.network.transformer_blocks, *self.network.single_transformer_blocks]

    def expand_input(self, network: Any, channels: int) -> None:
        super().expand_input(network, 4 * channels)

    @property
    def can_guide(self) -> bool:
        """By its input, not by a null condition."""
        return bool(self.network.config.guidance_embeds)

    def embed_guidance(self, weight: Guidance) -> None:
        if not self.can_guide:
            super().embed_guidance(weight)  # refuses a range
        self.embedded_guidance = weight if self.can_guide else None

    def encode_condition(self, labels: Tensor | None) -> Condition | None:
        """The rows of the table, with the embedded weight of guidance where all have one."""
        condition, weight = super().encode_condition(labels), self.embedded_guidance
        if condition is None or weight is None or isinstance(weight, GuidanceRange):
            return condition
        return with_weights(condition, torch.full((len(condition),), float(weight)))

    def predict(
        self,
        x: Tensor,
        t: Tensor | float,
        condition: Condition | None = None,
        guidance: Guidance = 1.0,
    ) -> Tensor:
        """The prediction (n, C, H, W) at the weight ``guidance``, by one call; InputError where the
        network takes none, or where the condition has another one already, or none for a range.
        """
        if condition is None or guidance == 1.0:
            return super().predict(x, t, condition)
        if isinstance(guidance, GuidanceRange):
            asked_weights(condition, guidance)  # refuses a condition without
            return super().predict(x, t, condition)
        given = WEIGHTS in condition
        if not (given and guidance == self.embedded_guidance):  # else it is in there already
            if given or not self.can_guide:
                there = "the condition has one" if self.can_guide else "the network takes none"
                raise InputError(f"guidance = {guidance}: {there}; use guidance 1.0")
            condition = with_weights(condition, torch.full((len(x),), float(guidance)))
        return super().predict(x, t, condition)

    @classmethod
    def _encode(cls, pipe: Any, prompts: list[str]) -> dict[str, Tensor]:
        states, pooled, _ = pipe.encode_prompt(
            prompts,
            device=pipe.text_encoder.device,
            max_sequence_length=default_of(pipe, "max_sequence_length"),
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}
