"""Stable Diffusion 3 and 3.5: ``SD3Transformer2DModel``, rectified flow (arXiv 2403.03206)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from models.common.errors import InputError
from models.teachers.base import LORA_TARGETS
from models.teachers.prompts import default_of
from models.teachers.transformer import TransformerDenoiser


class SD3(TransformerDenoiser):
    """Conditions are tokens of two CLIPs and of T5, and pooled ones. Position embeddings are cut
    from the centre of a table, so every size up to that table's is allowed.
    """

    text_parts = frozenset(
        f"{part}{i}" for part in ("tokenizer", "text_encoder") for i in ("", "_2", "_3")
    )
    input_layer = "pos_embed.proj"
    lora_targets = (*LORA_TARGETS, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")

    @property
    def lora_excluded(self) -> tuple[str, ...]:  # type: ignore[override]
        """The last block drops the text's tokens: what they ask for reaches nothing."""
        return (f"transformer_blocks.{len(self.network.transformer_blocks) - 1}.attn.add_q_proj",)

    @classmethod
    def sized(cls, network: Any, pixels: int, size: int | None) -> tuple[int, ...]:
        shape, config = super().sized(network, pixels, size), network.config
        if max(shape[1:]) > (largest := config.pos_embed_max_size * config.patch_size):
            raise InputError(
                f"teacher.size = {max(shape[1:]) * pixels}: the position embeddings of its "
                f"SD3Transformer2DModel end at {largest * pixels}; expected at most that"
            )
        return shape

    @classmethod
    def needed(cls, pipe: Any) -> frozenset[str]:
        """Its pipeline puts zeros in the place of T5 where that was dropped."""
        return cls.text_parts - {"tokenizer_3", "text_encoder_3"}

    @classmethod
    def _encode(cls, pipe: Any, prompts: list[str]) -> dict[str, Tensor]:
        states, _, pooled, _ = pipe.encode_prompt(
            prompts,
            None,
            None,
            device=pipe.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=default_of(pipe, "max_sequence_length"),
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}
