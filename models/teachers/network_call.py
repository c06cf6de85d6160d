"""How each kind of network is called: what a condition's plain names become in its arguments.

Teachers and students call networks through :func:`call_network`. The text of this file travels in
every student's folder (models/methods/student_pipeline.py), so it imports nothing of this project,
and a network is known by its class's name.

Names in a condition: ``class_labels`` (n,); ``encoder_hidden_states`` (n, L, F);
``pooled_projections`` (n, F').
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Given = dict[str, Tensor]


def call_network(
    network: Any,
    x: Tensor,
    t: Tensor,
    condition: Mapping[str, Tensor] | None = None,
    pixels: int = 1,
) -> Tensor:
    """The raw prediction (n, C', ...) for states x (n, C, ...) at times t (n,), in x's dtype.

    The network works in its own dtype: states and embeddings are converted, whole numbers are not.
    ``pixels``: side of the square of pixels that one entry of a state stands for
    (:func:`pixels_per_entry`); networks that are told the image's size need it.
    """
    dtype = getattr(network, "dtype", x.dtype)
    given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in (condition or {}).items()}
    for kind in type(network).__mro__:  # wrapped networks inherit from their own class
        if kind.__name__ in CALLS:
            return CALLS[kind.__name__](network, x.to(dtype), t, given, pixels).to(x.dtype)
    return _plain(network, x.to(dtype), t, given, pixels).to(x.dtype)


def pixels_per_entry(vae: Any) -> int:
    """How many pixels of a row one entry of the autoencoder's latents stands for; 1 without one."""
    if vae is None:
        return 1
    config = vae.config
    widths = config.get("block_out_channels") or config.get("encoder_block_out_channels")
    return int(2 ** (len(widths) - 1)) if widths else 1


def _plain(network: Any, x: Tensor, t: Tensor, given: Given, pixels: int) -> Tensor:
    output: Tensor = network(x, t, **given, return_dict=False)[0]
    return output


def _text_unet(network: Any, x: Tensor, t: Tensor, given: Given, pixels: int) -> Tensor:
    """Stable Diffusion's; SDXL's is also told the sizes, as if each image were made whole."""
    if network.config.addition_embed_type == "text_time":
        height, width = (side * pixels for side in x.shape[2:])
        # original size, corner of the crop, target size
        sizes = torch.tensor([height, width, 0, 0, height, width], device=x.device)
        added = {"text_embeds": given.pop("pooled_projections")}
        added["time_ids"] = sizes.float().expand(len(x), -1)
        output: Tensor = network(x, t, **given, added_cond_kwargs=added, return_dict=False)[0]
        return output
    return _plain(network, x, t, given, pixels)


CALLS: dict[str, Callable[[Any, Tensor, Tensor, Given, int], Tensor]] = {
    "UNet2DConditionModel": _text_unet,
}
