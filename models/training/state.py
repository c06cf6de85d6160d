"""What training changes: networks, their optimizers and averages, and the number of finished
steps.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from models.common.own_weights import load_own_weights, own_weights
from models.methods.base import Trainable
from models.training.optimizers import load_optimizer_state, make_optimizer, optimizer_state
from models.training.sharding import local


@dataclass(frozen=True)
class LoopConfig:
    """``steps`` optimizer steps; ``warmup`` steps of linear rise, then constant or cosine to 0.
    ``ema`` in [0, 1).
    """

    steps: int
    learning_rate: float = 1e-4
    learning_rates: dict[str, float] = field(default_factory=dict)
    warmup: int = 0
    schedule: str = "cosine"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    ema: float = 0.999
    clip: float = 1.0
    accumulate: int = 1
    precision: str = "float32"
    optimizer: str = "adamw"
    seed: int = 0

    def rate(self, step: int) -> float:
        """Factor on the learning rate at ``step`` (0-based)."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


class TrainState:
    """Networks, their optimizers and ema_weights, and the number of finished steps."""

    def __init__(self, method: Trainable, config: LoopConfig):
        self.step = 0
        self.config = config
        self.networks = dict(method.networks)
        self.optimizers = {name: self._optimizer(name, net) for name, net in self.networks.items()}
        self.ema_weights = {
            name: {k: v.detach().clone() for k, v in _trained(self.networks[name]).items()}
            for name in method.ema
        }
        self.scaler = torch.amp.GradScaler(
            "cuda", enabled=config.precision == "float16" and torch.cuda.is_available()
        )

    def _optimizer(self, name: str, net: nn.Module) -> torch.optim.Optimizer:
        groups: dict[float, list[Tensor]] = defaultdict(list)
        for parameter in _trained(net).values():
            groups[getattr(parameter, "rate_scale", 1.0)].append(parameter)
        base = self.config.learning_rates.get(name, self.config.learning_rate)
        param_groups = [
            {"params": ps, "lr": base * scale, "base": base * scale}
            for scale, ps in sorted(groups.items())
        ]
        return make_optimizer(
            self.config.optimizer, param_groups, self.config.betas, self.config.weight_decay
        )

    @torch.no_grad()
    def update_ema(self) -> None:
        """EMA with the usual warm-up of the decay, (1 + step) / (10 + step), so that short runs are
        not all start.
        """
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        for name, average in self.ema_weights.items():
            live = _trained(self.networks[name])
            torch._foreach_lerp_(
                [local(v) for v in average.values()], [local(live[k]) for k in average], 1.0 - decay
            )

    def ema_state(self, role: str) -> dict[str, Tensor]:
        """Full state dict of a network with its averaged weights in place."""
        return {**self.networks[role].state_dict(), **self.ema_weights[role]}

    def state_dict(self) -> dict[str, Any]:
        """All that an exact continuation needs: of networks around their teacher's weights what is
        their own.
        """
        return {
            "step": self.step,
            "networks": {k: own_weights(v, v.state_dict()) for k, v in self.networks.items()},
            "optimizers": {k: optimizer_state(v) for k, v in self.optimizers.items()},
            "ema_weights": self.ema_weights,
            "scaler": self.scaler.state_dict(),
        }

    def blank(self) -> dict[str, Any]:
        """What a full :meth:`state_dict` of this state looks like, to be filled in place: these
        networks and averages themselves, and moments of Adam for all weights.
        """
        blank = self.state_dict()
        for role, optimizer in self.optimizers.items():
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            blank["optimizers"][role]["state"] = {
                i: {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
                for i, p in enumerate(trained)
            }
        return blank

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; KeyError or RuntimeError if it belongs to another
        method.
        """
        for name, net in self.networks.items():
            load_own_weights(net, state["networks"][name])
        for name, optimizer in self.optimizers.items():
            load_optimizer_state(optimizer, state["optimizers"][name])
        with torch.no_grad():
            for name, average in self.ema_weights.items():
                for key, value in average.items():
                    value.copy_(state["ema_weights"][name][key])
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.step = int(state["step"])


def _trained(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in net.named_parameters() if p.requires_grad}
