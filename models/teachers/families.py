"""Which class wraps which network: one file per family, looked up by the network's class name."""

from __future__ import annotations

import importlib
from typing import Any

from models.common.errors import InputError

# network class -> "module:class" of a denoiser with ``from_diffusers``; imported when used
FAMILIES: dict[str, str] = {
    "UNet2DModel": "models.teachers.unet2d:UNet2D",
    "DiTTransformer2DModel": "models.teachers.dit:DiT",
    "UNet2DConditionModel": "models.teachers.text_unet:TextUNet",
    "SD3Transformer2DModel": "models.teachers.sd3:SD3",
    "FluxTransformer2DModel": "models.teachers.flux:Flux",
    "PixArtTransformer2DModel": "models.teachers.pixart:PixArt",
    "SanaTransformer2DModel": "models.teachers.sana:Sana",
    "UNet1DModel": "models.teachers.unet1d:UNet1D",
}


def register_family(network: str, denoiser: str) -> None:
    """Let networks of class ``network`` be opened as ``denoiser``, a "module:class"."""
    FAMILIES[network] = denoiser


def family_of(network: Any, source: str = "") -> Any:
    """The denoiser class for a network; InputError names the known ones."""
    found = type(network).__name__
    if found not in FAMILIES:
        raise InputError(
            f"teacher{f' {source}' if source else ''}: denoiser {found}; expected "
            f"{', '.join(sorted(FAMILIES))}"
        )
    return family_named(found)


def family_named(network: str) -> Any:
    """The denoiser class for networks of the class ``network``, a key of :data:`FAMILIES`."""
    module, _, name = FAMILIES[network].partition(":")
    return getattr(importlib.import_module(module), name)
