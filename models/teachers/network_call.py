"""How each kind of network is called: what a condition's plain names become in its arguments.

Teachers and students call networks through :func:`call_network`. The text of this file travels in
every student's folder (models/methods/student_pipeline.py), so it imports nothing of this project,
and a network is known by its class's name.

Names in a condition: ``class_labels`` (n,); ``encoder_hidden_states`` (n, L, F);
``encoder_attention_mask`` (n, L), 1 for tokens that count; ``pooled_projections`` (n, F');
``guidance`` (n,), its weight, of networks that take it as an input: FLUX, 1 where it is not said,
and Stable Diffusion's UNets with ``time_cond_proj_dim``, which must be given one. UNets without are
asked without guidance, whatever it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Given = dict[str, Tensor]
WEIGHT_WIDTH = 256  # of the embedding of guidance's weight, as of latent consistency models


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
    given = {
        # a weight loses too much in half precision: its embedding asks for the third digit
        k: v.to(dtype) if v.is_floating_point() and k != "guidance" else v
        for k, v in (condition or {}).items()
    }
    for kind in type(network).__mro__:  # wrapped networks inherit from their own class
        if kind.__name__ in CALLS:
            return CALLS[kind.__name__](network, x.to(dtype), t, given, pixels).to(x.dtype)
    return _plain(network, x.to(dtype), t, given, pixels).to(x.dtype)


def call_for(
    prediction: str,
    network: Any,
    x: Tensor,
    t: Tensor,
    channels: int,
    condition: Mapping[str, Tensor] | None = None,
    pixels: int = 1,
) -> Tensor:
    """The prediction (n, C', ...) of that type: the network's output, but for "ve" the noise eps
    that a network of scores sees in a variance exploding state.

    Such a one is given y = x0 + s eps at the time s = t, and answers with the score, -eps / s.
    ``x``: that state as y / sqrt(1 + s^2) in its first ``channels``; further ones are given as they
    are.
    """
    if prediction != "ve":
        return call_network(network, x, t, condition, pixels)
    s = t.to(x.dtype).view(-1, *[1] * (x.dim() - 1))
    y = x[:, :channels] * (1 + s**2).sqrt()
    return -s * call_network(network, torch.cat([y, x[:, channels:]], 1), t, condition, pixels)


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
    weight, width = given.pop("guidance", None), network.config.get("time_cond_proj_dim")
    if width is not None:
        if weight is None:
            raise ValueError("this UNet2DConditionModel takes guidance's weight; none is given")
        given["timestep_cond"] = weight_embedding(weight, width).to(x.dtype)
    if network.config.addition_embed_type == "text_time":
        height, width = (side * pixels for side in x.shape[2:])
        # original size, corner of the crop, target size
        sizes = torch.tensor([height, width, 0, 0, height, width], device=x.device)
        added = {"text_embeds": given.pop("pooled_projections")}
        added["time_ids"] = sizes.float().expand(len(x), -1)
        output: Tensor = network(x, t, **given, added_cond_kwargs=added, return_dict=False)[0]
        return output
    return _plain(network, x, t, given, pixels)


def weight_embedding(weight: Tensor, width: int) -> Tensor:
    """(n, width) float32 of weights (n,) of guidance: sines, then cosines of 1000 (weight - 1) at
    frequencies falling from 1 to 1e-4, as in diffusers' ``get_guidance_scale_embedding``; ``width``
    is even.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=weight.device)
    frequencies = torch.exp(steps * -(math.log(10000.0) / (half - 1)))
    angles = ((weight.float() - 1.0) * 1000.0)[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], 1)


def _sd3(network: Any, x: Tensor, t: Tensor, given: Given, pixels: int) -> Tensor:
    output: Tensor = network(x, timestep=t, **given, return_dict=False)[0]
    return output


def _flux(network: Any, x: Tensor, t: Tensor, given: Given, pixels: int) -> Tensor:
    """Squares of 2 x 2 entries are tokens; each is told its row and column, t lies in [0, 1]."""
    height, width = (side // 2 for side in x.shape[2:])
    guidance = given.pop("guidance", None)
    if network.config.guidance_embeds and guidance is None:
        guidance = torch.ones(len(x), device=x.device)
    places = torch.zeros(height, width, 3, device=x.device, dtype=x.dtype)
    places[..., 1] = torch.arange(height, device=x.device)[:, None]
    places[..., 2] = torch.arange(width, device=x.device)
    words = given["encoder_hidden_states"].shape[1]
    output: Tensor = network(
        packed(x),
        timestep=t / 1000,
        guidance=guidance,
        img_ids=places.view(-1, 3),
        txt_ids=torch.zeros(words, 3, device=x.device, dtype=x.dtype),
        **given,
        return_dict=False,
    )[0]
    return unpacked(output, height, width)


def packed(x: Tensor) -> Tensor:
    """(n, C, H, W) -> (n, H / 2 W / 2, 4 C): the 4 entries of a channel lie beside each other."""
    n, channels, height, width = x.shape
    squares = x.reshape(n, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(n, height * width // 4, 4 * channels)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of :func:`packed`, for ``height`` x ``width`` tokens."""
    n, _, features = tokens.shape
    squares = tokens.reshape(n, height, width, features // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(n, features // 4, 2 * height, 2 * width)


def _pixart(network: Any, x: Tensor, t: Tensor, given: Given, pixels: int) -> Tensor:
    """Those for 1024 pixels are told the image's size and its shape."""
    added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if network.use_additional_conditions:
        height, width = (side * pixels for side in x.shape[2:])
        resolution = torch.tensor([height, width], device=x.device, dtype=x.dtype)
        ratio = torch.tensor([height / width], device=x.device, dtype=x.dtype)
        added["resolution"] = resolution.expand(len(x), -1)
        added["aspect_ratio"] = ratio.expand(len(x), -1)
    output: Tensor = network(x, timestep=t, added_cond_kwargs=added, **given, return_dict=False)[0]
    return output


def _sana(network: Any, x: Tensor, t: Tensor, given: Given, pixels: int) -> Tensor:
    scaled = t * network.config.timestep_scale
    output: Tensor = network(x, timestep=scaled, **given, return_dict=False)[0]
    return output


CALLS: dict[str, Callable[[Any, Tensor, Tensor, Given, int], Tensor]] = {
    "UNet2DConditionModel": _text_unet,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
    "PixArtTransformer2DModel": _pixart,
    "SanaTransformer2DModel": _sana,
}
