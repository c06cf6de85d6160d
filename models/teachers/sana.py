"""Sana: ``SanaTransformer2DModel`` over latents of a deep-compression autoencoder
(arXiv 2410.10629).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.teachers.base import LORA_TARGETS
from models.teachers.conditioning import Condition
from models.teachers.prompts import as_rows, default_of, refuse_options
from models.teachers.transformer import TransformerDenoiser


class Sana(TransformerDenoiser):
    """Conditions are tokens of Gemma with their mask; its pipeline writes an instruction before
    each prompt, not before a negative one. Prompts are set in lower case, and not cleaned further.
    """

    input_layer = "patch_embed.proj"
    lora_targets = (*LORA_TARGETS, "conv_inverted", "conv_point")

    @classmethod
    def check(cls, network: Any, scheduler: Any) -> None:
        super().check(network, scheduler)
        refuse_options(network, {"guidance_embeds": (False, None)})

    @classmethod
    def encode_null(cls, pipe: Any, negative: str | None = None) -> Condition | None:
        cls.check_encoders(pipe)
        with torch.no_grad():
            _, _, states, mask = cls._encoded(pipe, [""], negative_prompt=negative or "")
        return as_rows({"encoder_hidden_states": states, "encoder_attention_mask": mask})

    @classmethod
    def _encode(cls, pipe: Any, prompts: list[str]) -> dict[str, Tensor]:
        states, mask, _, _ = cls._encoded(pipe, prompts, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    @staticmethod
    def _encoded(pipe: Any, prompts: list[str], **options: Any) -> Any:
        return pipe.encode_prompt(
            prompts,
            device=pipe.text_encoder.device,
            max_sequence_length=default_of(pipe, "max_sequence_length"),
            complex_human_instruction=default_of(pipe, "complex_human_instruction"),
            **options,
        )
