"""PixArt-alpha and -sigma: ``PixArtTransformer2DModel`` (arXiv 2310.00426, 2403.04692)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from models.teachers.prompts import default_of
from models.teachers.transformer import TransformerDenoiser


class PixArt(TransformerDenoiser):
    """Conditions are tokens of T5 with their mask. Prompts are set in lower case, and not cleaned
    further. The network may predict a variance too, which is cut off.
    """

    input_layer = "pos_embed.proj"

    @staticmethod
    def splits_variance(scheduler: Any) -> bool:
        return True  # its pipeline cuts the second half off, whatever the scheduler says

    @classmethod
    def _encode(cls, pipe: Any, prompts: list[str]) -> dict[str, Tensor]:
        states, mask, _, _ = pipe.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            device=pipe.text_encoder.device,
            max_sequence_length=default_of(pipe, "max_sequence_length"),
        )
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}
