"""Student networks from the teacher's: more input channels that start at zero, all weights or
LoRA.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from models.common.errors import InputError

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "proj", "net.2")


def student_network(
    network: nn.Module, in_channels: int, trainable: str = "full", rank: int = 16
) -> nn.Module:
    """A copy of a UNet2DModel or DiT whose first layer takes ``in_channels`` >= the teacher's.

    The added channels' weights are zero, so the copy computes the teacher until it is trained.
    ``trainable``: "full", "lora" (Hu et al. 2022, rank ``rank``, on attention, MLP and residual
    convolutions, plus the first layer), or "input" (the first layer alone). Raises InputError on
    anything else.
    """
    student = copy.deepcopy(network).requires_grad_(False)
    widen_input(student, in_channels)
    if trainable == "full":
        student.requires_grad_(True)
    elif trainable in ("lora", "input"):
        if trainable == "lora":
            _add_lora(student, rank)
        first_layer(student).requires_grad_(True)
    else:
        raise InputError(f"method.trainable = {trainable!r}: expected full, lora or input")
    for module in student.modules():
        if hasattr(module, "dropout_prob"):
            # a DiT forgets labels at random in training mode; the student follows its teacher's
            module.dropout_prob = 0.0  # type: ignore[assignment]
    return student.train()


def first_layer(network: nn.Module) -> nn.Conv2d:
    """The layer that sees the state: a UNet's ``conv_in`` or a DiT's patch embedding."""
    return network.conv_in if hasattr(network, "conv_in") else network.pos_embed.proj  # type: ignore[union-attr,return-value]


def widen_input(network: nn.Module, in_channels: int) -> None:
    """Give the first convolution ``in_channels`` inputs, the new ones with zero weights; config
    follows.
    """
    old: Any = first_layer(network)
    if in_channels < old.in_channels:
        raise InputError(
            f"student input channels {in_channels}: expected at least the teacher's "
            f"{old.in_channels}"
        )
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,
        old.stride,
        old.padding,
        bias=old.bias is not None,
    ).to(old.weight)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    if hasattr(network, "conv_in"):
        network.conv_in = new
    else:
        network.pos_embed.proj = new  # type: ignore[union-attr]
    settings: dict[str, Any] = {"in_channels": in_channels}
    if hasattr(network, "pos_embed"):
        settings["out_channels"] = network.config.out_channels or old.in_channels  # type: ignore[union-attr]
    network.register_to_config(**settings)  # type: ignore[operator]


def _add_lora(network: nn.Module, rank: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(LORA_TARGETS),
        exclude_modules=["pos_embed.proj"] if hasattr(network, "pos_embed") else None,
        init_lora_weights="gaussian",
    )
    inject_adapter_in_model(config, network)


def merged(network: nn.Module) -> nn.Module:
    """A plain copy with LoRA folded into the weights: a stock diffusers model that
    ``save_pretrained`` writes.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = copy.deepcopy(network)
    for name, module in list(plain.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(plain.get_submodule(parent), leaf, module.get_base_layer())
    return plain.requires_grad_(False).eval()
