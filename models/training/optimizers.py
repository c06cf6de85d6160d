"""The optimizers of ``student.optimizer``: AdamW, or AdamW whose two moments have 8 bits
(Dettmers et al. 2022, arXiv 2110.02861), by the package torchao where that is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.common.errors import InputError

PARTS = ("codes", "scale", "qmap")  # of a moment of 8 bits


def make_optimizer(
    name: str, groups: Sequence[dict[str, Any]], betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer of parameter groups. Raises InputError if its package is not installed."""
    if name == "adamw":
        return torch.optim.AdamW(list(groups), betas=betas, weight_decay=weight_decay)
    check_optimizer(name)
    from torchao.optim import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(
        list(groups), betas=betas, weight_decay=weight_decay
    )
    return optimizer


def check_optimizer(name: str) -> None:
    """InputError if an optimizer's package is not installed."""
    if name == "adamw":
        return
    try:
        import torchao.optim  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"student.optimizer = {name}: the package torchao cannot be imported "
            f"({str(error).splitlines()[0]}); run `pip install torchao`, or use adamw"
        ) from error


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set the learning rate of a parameter group; torchao's are tensors, which it compiles in."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Its state dict of plain tensors and numbers, for a checkpoint."""
    found = optimizer.state_dict()
    groups = [
        {k: float(v) if isinstance(v, Tensor) else v for k, v in group.items()}
        for group in found["param_groups"]
    ]
    state = {
        i: {key: _plain(value) for key, value in own.items()} for i, own in found["state"].items()
    }
    return {"state": state, "param_groups": groups}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Continue from :func:`optimizer_state`; ValueError if it belongs to other parameters."""
    rates = [group["lr"] for group in optimizer.param_groups]
    moments = {
        i: {key: _moment(value) for key, value in own.items()} for i, own in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(rate, Tensor):
            group["lr"] = rate.fill_(group["lr"])


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor) and all(hasattr(value, part) for part in PARTS):
        return {part: getattr(value, part) for part in PARTS} | {"signed": value.signed}  # type: ignore[attr-defined]
    return value


def _moment(value: Any) -> Any:
    if isinstance(value, dict):
        from torchao.optim.subclass_8bit import OptimState8bit

        return OptimState8bit(*(value[part] for part in PARTS), value["signed"], torch.float32)
    return value
