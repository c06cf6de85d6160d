"""The costs of a job's networks: teacher, student, fake, and the autoencoder both ways."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.methods.costs import CODEC, Gradient
from models.methods.student_network import student_network
from models.teachers.network_call import call_network, pixels_per_entry
from tasks.estimate.blueprint import Blueprint
from tasks.estimate.simulation import Cost, count_flops, simulate

LARGE = 3e8  # parameters from which sizes are told from one another by their forward passes


class Networks:
    """``channels``, ``trainable``, ``rank``: of the student; ``checkpointing``: what of the
    networks that are trained is computed again in the backward pass, if anything; ``precision``:
    of training.
    """

    def __init__(
        self,
        plan: Blueprint,
        channels: int,
        trainable: str = "full",
        rank: int = 16,
        checkpointing: Literal["call", "block"] | None = None,
        precision: str = "float32",
    ):
        self.plan, self.channels, self.checkpointing = plan, channels, checkpointing
        self.trainable, self.rank, self.precision = trainable, rank, precision
        self.pixels = pixels_per_entry(plan.vae)
        self._kept = lru_cache(None)(self._cost)
        self.forward = lru_cache(None)(self._forward)

    @cached_property
    def student_weights(self) -> tuple[int, int]:
        """(all parameters of the student's network, trained ones)."""
        sizes = [(p.numel(), p.requires_grad) for p in self._student().parameters()]
        return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)

    @property
    def settings(self) -> tuple[Any, ...]:
        """What its costs depend on beside the plan."""
        return (self.channels, self.trainable, self.rank, self.checkpointing, self.precision)

    @property
    def again(self) -> bool:
        """Whether whole calls are computed twice; where blocks are, their FLOPs say so."""
        return self.checkpointing == "call"

    @property
    def own_weights(self) -> int:
        """Of a role's network beside the teacher's tensors, which one that trains adapters shares
        where they are float32.
        """
        whole, trained = self.student_weights
        shares = self.trainable != "full" and self.plan.dtype == torch.float32
        return trained if shares else whole

    def flops(self, network: str, gradient: Gradient = "none", size: int | None = None) -> float:
        """Of one row. Of a large network at another size: as many as its forward pass has there,
        times what the gradient adds at full size; adapters add little to a forward pass.
        """
        size = None if size == self._full else size
        if network in CODEC or self.plan.parameters < LARGE:
            return self.cost(network, gradient, size).flops
        if gradient == "none":
            return self.forward(size)
        whole = self.cost(network, gradient, None, self.precision).flops
        return whole * self.forward(size) / self.forward(None)

    @property
    def _full(self) -> int:
        return self.plan.teacher.shape[-1]

    @property
    def _channels(self) -> int:
        return self.plan.teacher.shape[0]

    def cost(
        self,
        network: str,
        gradient: Gradient = "none",
        size: int | None = None,
        precision: str = "float32",
    ) -> Cost:
        """Of a call; ``precision``: of autocast. Networks of the same form cost the same."""
        if network == "target" or (network == "fake" and self.channels == self._channels):
            network = "student"
        return self._kept(network, gradient, None if size == self._full else size, precision)

    def _forward(self, size: int | None) -> float:
        """FLOPs of the teacher's forward pass for one row."""
        space = self.plan.teacher.shape[1:] if size is None else self._resized(size)
        inputs, call = self._inputs(self._channels, space), self._call
        base = self.plan.teacher.network
        return count_flops(lambda: self._teacher("none"), inputs, call, base)

    def _cost(
        self,
        network: str,
        gradient: Gradient,
        size: int | None,
        precision: str,
    ) -> Cost:
        number = getattr(torch, precision)
        space = self.plan.teacher.shape[1:] if size is None else self._resized(size)
        if network in CODEC:
            return self._codec(network, space)
        own = network in ("student", "fake")
        make = (lambda: self._student(gradient)) if own else lambda: self._teacher(gradient)
        channels = self.channels if network == "student" else self._channels
        inputs, base = self._inputs(channels, space), self.plan.teacher.network
        return simulate(make, inputs, self._call, gradient, number, base)

    def _inputs(self, channels: int, space: tuple[int, ...]) -> Callable[[int], dict[str, Tensor]]:
        def inputs(n: int) -> dict[str, Tensor]:
            state = {"x": torch.zeros(n, channels, *space), "t": torch.full((n,), 500.0)}
            return state | condition_of(self.plan, n)

        return inputs

    def _call(self, made: Any, given: dict[str, Tensor]) -> Tensor:
        condition = {k: v for k, v in given.items() if k not in ("x", "t")}
        return call_network(made, given["x"], given["t"], condition, self.pixels)

    def _resized(self, size: int) -> tuple[int, ...]:
        return (size,) * (len(self.plan.teacher.shape) - 1)

    def _teacher(self, gradient: Gradient) -> Any:
        network = copy.deepcopy(self.plan.teacher.network)
        if self.plan.dtype != torch.float32:
            nn.Module.to(network, self.plan.dtype)  # diffusers' own warns
        return network.train().requires_grad_(gradient == "weights")

    def _student(self, gradient: Gradient = "weights") -> Any:
        network: Any = student_network(self.plan.teacher, self.channels, self.trainable, self.rank)
        if gradient == "input":  # through a network that rests, without checkpointing
            return network.requires_grad_(False)
        if self.checkpointing == "block":
            network.enable_gradient_checkpointing()
        return network

    def _codec(self, way: str, space: tuple[int, ...]) -> Cost:
        vae, shape = self.plan.vae, self.plan.data_shape()
        channels = self.plan.teacher.shape[0]
        if way == "encode":
            channels, space = shape[0], tuple(side * self.pixels for side in space)

        def call(made: Any, given: dict[str, Tensor]) -> Tensor:
            if way == "decode":
                decoded: Tensor = made.decode(given["x"]).sample
                return decoded
            encoded = made.encode(given["x"])
            if hasattr(encoded, "latent_dist"):
                return encoded.latent_dist.mode()  # type: ignore[no-any-return]
            return encoded.latents if hasattr(encoded, "latents") else encoded.latent  # type: ignore[no-any-return]

        return simulate(
            lambda: vae,
            lambda n: {"x": torch.zeros(n, channels, *space)},
            call,
            "none",
        )


def condition_of(plan: Blueprint, n: int) -> dict[str, Tensor]:
    """A condition of n rows without content."""
    return {
        name: torch.zeros((n, *shape), dtype=number)
        if number.is_floating_point
        else torch.ones((n, *shape), dtype=number)
        for name, (shape, number) in plan.condition.items()
    }
