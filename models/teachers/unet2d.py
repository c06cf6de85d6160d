"""Pixel or latent UNets of images: ``UNet2DModel``, with or without classes."""

from __future__ import annotations

from typing import Any

import torch

from models.common.errors import InputError
from models.teachers.unet import UNetDenoiser


class UNet2D(UNetDenoiser):
    """States (C, H, W); the middle block's features are (n, F, h, w).

    Classes are embeddings; one of them may stand for "no class". Networks are trained with that one
    first or last; :func:`null_class_last` moves it to the end, so that the real classes are always
    0 to ``num_classes - 1``.
    """

    @staticmethod
    def classes(config: Any, null_class: int | None) -> tuple[int | None, int | None]:
        embeds = config.get("num_class_embeds")
        if null_class is None:
            return embeds, None
        if embeds is None:
            raise InputError(f"teacher.null_class = {null_class}: this teacher has no classes")
        if null_class != embeds - 1:
            raise InputError(
                f"teacher.null_class = {null_class}: expected {embeds - 1}, the last of the "
                f"network's {embeds} classes; the teacher stage moves another one there"
            )
        return embeds - 1, null_class

    @classmethod
    def check(cls, network: Any, scheduler: Any) -> None:
        super().check(network, scheduler)
        config = network.config
        if config.get("class_embed_type") is not None:
            raise InputError(
                f"teacher's UNet2DModel: class_embed_type {config.class_embed_type!r}; expected "
                "null with num_class_embeds, one embedding per class"
            )
        cls.check_middle(network)

    def expand_input(self, network: Any, channels: int) -> None:
        """Blocks with skips read the state themselves, with layers of three channels."""
        if channels > network.config.in_channels and any(
            "Skip" in name for name in network.config.down_block_types
        ):
            raise InputError(
                f"teacher's UNet2DModel: its {network.config.down_block_types[0]} reads states of "
                f"3 channels, a student of {channels} has no place there; expected method.inputs: "
                "none (and method.conditioning_limit: null), or another method"
            )
        super().expand_input(network, channels)


def null_class_last(network: Any, null_class: int) -> int:
    """Move the embedding of ``null_class`` behind the others, in place; returns its new number.

    Real classes keep their order. InputError for a network without that class.
    """
    embeds = network.config.get("num_class_embeds")
    if embeds is None:
        raise InputError(f"teacher.null_class = {null_class}: this teacher has no classes")
    if not 0 <= null_class < embeds:
        raise InputError(
            f"teacher.null_class = {null_class}: expected 0 to {embeds - 1}, the network has "
            f"{embeds} classes"
        )
    order = [i for i in range(embeds) if i != null_class] + [null_class]
    with torch.no_grad():
        weight = network.class_embedding.weight
        weight.copy_(weight[order].clone())
    return int(embeds) - 1
