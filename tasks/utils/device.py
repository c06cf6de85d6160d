"""The device that a stage works on."""

from __future__ import annotations

import torch


def pick_device(index: int | None = None) -> torch.device:
    """cuda (the given index, or the current one) where there is a GPU, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda") if index is None else torch.device("cuda", index)
