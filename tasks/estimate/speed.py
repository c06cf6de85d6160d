"""How long network calls take: timed on this machine, or their FLOPs on a named device."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import torch

from models.methods.costs import Gradient
from models.methods.student_network import student_network
from models.teachers.network_call import call_network
from tasks.estimate.devices import Device, device_like
from tasks.estimate.networks import Networks, condition_of
from tasks.estimate.work import Work

TIMED_PARAMETERS, TIMED_FLOPS = 1e8, 4e9  # networks up to these are built and timed on a CPU
ENOUGH, AT_MOST = 0.3, 2.0  # seconds of one timing
PROBE = 1024  # side of the matrices that stand for a network too large to be timed
OF_A_PRODUCT = 0.5  # of a matrix product's speed is what such a network reaches, an assumption


class Speed(Protocol):
    """``told``: what the times are from; ``threads``: cores that share the work, 1 on a device
    with a clock of its own.
    """

    told: str
    threads: int

    def seconds(self, work: Work) -> float:
        """Of all rows: CPU seconds, or those of the device."""
        ...

    def step_seconds(self) -> float:
        """Of one optimizer step beside its calls."""
        ...

    def of_flops(self, flops: float) -> float:
        """Of so many float32 operations in large products."""
        ...


class ByFlops:
    """FLOPs over a rate, ``rate(precision)`` in FLOP/s."""

    def __init__(
        self, networks: Networks, rate: Callable[[str], float], told: str, threads: int = 1
    ):
        self.networks, self.rate, self.told, self.threads = networks, rate, told, threads

    def seconds(self, work: Work) -> float:
        each = self.networks.flops(work.network, work.gradient, work.size)
        # LoRA and whole students are float32 copies; autocast makes their products in half
        precision = work.precision
        if work.network == "teacher" and self.networks.plan.dtype != torch.float32:
            precision = "bfloat16"
        return work.rows * each / self.rate(precision) * self._again(work)

    def _again(self, work: Work) -> float:
        """Gradient checkpointing computes the forward pass twice."""
        if not self.networks.again or work.gradient == "none":
            return 1.0
        forward = self.networks.flops(work.network, "none", work.size)
        return 1.0 + forward / self.networks.flops(work.network, work.gradient, work.size)

    def step_seconds(self) -> float:
        return 0.0

    def of_flops(self, flops: float) -> float:
        return flops / self.rate("float32")


class Timed:
    """Networks of the job's shape with random weights, called on this machine's CPU."""

    def __init__(self, networks: Networks):
        self.networks, self.threads = networks, torch.get_num_threads()
        self.told = f"timed calls on this CPU, {self.threads} threads"
        self._row = lru_cache(None)(self._timed)

    def seconds(self, work: Work) -> float:
        batch = max(1, min(work.batch, round(work.rows)))
        row = self._row(work.network, work.gradient, work.size, batch, work.precision)
        if not self.networks.again or work.gradient != "weights":
            return work.rows * row
        return work.rows * (row + self._row(work.network, "none", work.size, batch, work.precision))

    def step_seconds(self) -> float:
        network = self._student()
        trained = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-9)
        average = [p.detach().clone() for p in trained]
        for parameter in trained:
            parameter.grad = torch.full_like(parameter, 1e-3)

        def step() -> None:
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            torch._foreach_lerp_(average, [p.detach() for p in trained], 0.1)

        return _best(step)

    def of_flops(self, flops: float) -> float:
        return flops / (OF_A_PRODUCT * _product_rate())

    @lru_cache(None)  # noqa: B019  (as long as the estimate)
    def _teacher(self) -> Any:
        network = self.networks.plan.teacher.network
        made = type(network).from_config(network.config)
        if self.networks.plan.dtype != torch.float32:
            torch.nn.Module.to(made, self.networks.plan.dtype)  # diffusers' own warns
        return made.to(memory_format=torch.channels_last).eval()

    @lru_cache(None)  # noqa: B019
    def _student(self) -> Any:
        teacher = self.networks.plan.teacher.with_network(self._teacher())
        networks = self.networks
        made: Any = student_network(teacher, networks.channels, networks.trainable, networks.rank)
        if networks.checkpointing == "block":
            made.enable_gradient_checkpointing()
        return made.to(memory_format=torch.channels_last)

    @lru_cache(None)  # noqa: B019
    def _vae(self) -> Any:
        vae = self.networks.plan.vae
        return type(vae).from_config(vae.config).eval()

    def _timed(
        self, network: str, gradient: Gradient, size: int | None, batch: int, precision: str
    ) -> float:
        """Seconds of one row."""
        flops = self.networks.flops(network, gradient, size)
        rows = max(1, min(batch, int(20 * TIMED_FLOPS / max(flops, 1.0))))
        plan = self.networks.plan
        space = plan.teacher.shape[1:]
        if size is not None:
            space = (size,) * len(space)
        if network in ("encode", "decode"):
            return self._codec(network, rows, space)
        own = network in ("student", "fake", "target")
        module = self._student() if own else self._teacher()
        channels = self.networks.channels if own and network != "fake" else plan.teacher.shape[0]
        x = torch.randn(rows, channels, *space)
        t, condition = torch.full((rows,), 500.0), condition_of(plan, rows)
        half = precision != "float32"

        def call() -> None:
            wanted = gradient == "weights"
            given = x.requires_grad_(True) if gradient == "input" else x
            with torch.set_grad_enabled(gradient != "none"):
                with torch.autocast("cpu", getattr(torch, precision), enabled=half):
                    made = call_network(module, given, t, condition, self.networks.pixels)
                if gradient != "none":
                    made.float().square().mean().backward()
            if wanted:
                module.zero_grad(set_to_none=True)

        if not own:
            module.requires_grad_(gradient == "weights")
        elif gradient == "input":
            module = copy.deepcopy(module).requires_grad_(False)
        return _best(call) / rows

    def _codec(self, way: str, rows: int, space: tuple[int, ...]) -> float:
        vae, plan = self._vae(), self.networks.plan
        if way == "encode":
            shape = plan.data_shape()[0], *(side * self.networks.pixels for side in space)
            x = torch.randn(rows, *shape)
        else:
            x = torch.randn(rows, plan.teacher.shape[0], *space)

        @torch.no_grad()
        def call() -> None:
            vae.decode(x) if way == "decode" else vae.encode(x)

        return _best(call) / rows


def _best(call: Callable[[], object]) -> float:
    """CPU seconds of the shortest of some calls, after a first that does not count if there is
    time.
    """
    spent: list[float] = []
    while not spent or (sum(spent) < ENOUGH and len(spent) < 50) or len(spent) < 2:
        start = time.process_time()
        call()
        spent.append(time.process_time() - start)
        if sum(spent) > AT_MOST:
            break
    return min(spent[1:] or spent)


def choose_speed(networks: Networks, device: Device | None) -> Speed:
    """By FLOPs on ``device``, or on this machine's GPU; else timed on this CPU, or by FLOPs where
    the network is too large for that.
    """
    if device is None and torch.cuda.is_available():
        device = device_like(torch.cuda.get_device_name())
    if device is not None:
        return ByFlops(
            networks, device.flops_per_second, f"FLOPs, {device.name} at 40 % of its peak"
        )
    small = networks.plan.parameters <= TIMED_PARAMETERS
    if small and networks.flops("teacher") <= TIMED_FLOPS:
        return Timed(networks)
    rate = OF_A_PRODUCT * _product_rate()
    told = (
        f"FLOPs, this CPU at half the speed of a matrix product ({rate / 1e9:.0f} GFLOP/s a core)"
    )
    return ByFlops(networks, lambda precision: rate, told, torch.get_num_threads())


def _product_rate() -> float:
    """FLOP/s of a core."""
    a = torch.randn(PROBE, PROBE)
    return float(2 * PROBE**3 / _best(lambda: torch.mm(a, a)))
