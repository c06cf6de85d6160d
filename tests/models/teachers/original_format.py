"""Stable Diffusion's weights under the names that its authors' code and its fine-tunes use."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

Names = list[tuple[str, str]]
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original(pipe: Any) -> dict[str, Tensor]:
    """The weights of a StableDiffusionPipeline with two levels and one layer a level."""
    named: dict[str, Tensor] = {}
    for key, value in pipe.unet.state_dict().items():
        named[f"model.diffusion_model.{unet_name(key)}"] = value
    for key, value in pipe.vae.state_dict().items():
        square = "attentions" in key and "to_" in key and value.dim() == 2
        named[f"first_stage_model.{vae_name(key)}"] = value[..., None, None] if square else value
    for key, value in pipe.text_encoder.state_dict().items():
        inside = key if key.startswith("text_model.") else f"text_model.{key}"
        named[f"cond_stage_model.transformer.{inside}"] = value
    return {name: value.contiguous().clone() for name, value in named.items()}


def unet_name(key: str) -> str:
    stem, end = key.rsplit(".", 1)
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.{end}"
    side, rest = re.fullmatch(r"(down_blocks\.\d|up_blocks\.\d|mid_block)\.(.*)", stem).groups()  # type: ignore[union-attr]
    kind, place, inside = re.fullmatch(r"(\w+)\.(\d)\.?(.*)", rest).groups()  # type: ignore[union-attr]
    inside = RESNET[inside] if kind == "resnets" else inside
    if side == "mid_block":
        return f"middle_block.{2 * int(place) if kind == 'resnets' else 1}.{inside}.{end}"
    block = 2 * int(side[-1])
    if kind == "downsamplers":
        return f"input_blocks.{block + 2}.0.op.{end}"
    if kind == "upsamplers":  # after the attention of the first level from below
        return f"output_blocks.{block + 1}.2.conv.{end}"
    first = f"input_blocks.{block + 1}" if side[0] == "d" else f"output_blocks.{block + int(place)}"
    return f"{first}.{0 if kind == 'resnets' else 1}.{inside}.{end}"


def vae_name(key: str) -> str:
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{1 - int(m[1])}.block", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{1 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    if "mid_block.attentions.0" in key:
        for new, old in ATTENTION.items():
            key = key.replace(new, old)
        return key.replace("mid_block.attentions.0", "mid.attn_1")
    return key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
