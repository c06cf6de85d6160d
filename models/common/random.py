"""Stateless randomness: a generator is a function of its key."""

from __future__ import annotations

import torch


def generator_for(device: torch.device | str, *key: int) -> torch.Generator:
    """A generator whose seed is a hash of ``key``; equal keys give equal streams."""
    seed = 0x9E3779B97F4A7C15
    for part in key:
        seed = ((seed ^ (part + 0x7F4A7C15)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        seed ^= seed >> 29
    return torch.Generator(device=device).manual_seed(seed & (2**63 - 1))
