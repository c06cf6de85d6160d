"""Weights that a network has from its teacher and does not train: they are its teacher's own
tensors where that is possible, and left out of what is kept of the network.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def copy_sharing_weights(network: Network) -> Network:
    """A copy in float32 with modules of its own, whose weights are the same tensors where those are
    float32 already: for copies that train none of them. What moves one to a device moves both.
    """
    tensors = (*network.parameters(), *network.buffers())
    kept = {id(t): t for t in tensors if t.dtype == torch.float32 or not t.is_floating_point()}
    return copy.deepcopy(network, kept).float()  # type: ignore[arg-type]


def mark_the_rest(network: nn.Module) -> None:
    """Take all that ``network`` does not train for its teacher's."""
    for parameter in network.parameters():
        if not parameter.requires_grad:
            parameter.is_teachers = True  # type: ignore[attr-defined]


def own_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a state dict of ``network`` those that are not its teacher's."""
    theirs = _theirs(network)
    return {name: value for name, value in weights.items() if name not in theirs}


def load_own_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put a state dict into ``network``, in which its teacher's weights may be missing.

    Raises RuntimeError if others are, or if there are unknown ones.
    """
    theirs = _theirs(network)
    missing, unknown = network.load_state_dict(weights, strict=not theirs)
    if lacking := [name for name in missing if name not in theirs] + list(unknown):
        raise RuntimeError(f"weights of another {type(network).__name__}: {lacking[0]}")


def _theirs(network: nn.Module) -> set[str]:
    named = network.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if getattr(parameter, "is_teachers", False)}
