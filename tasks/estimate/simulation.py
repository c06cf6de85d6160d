"""Operations and memory of one network call, from tensors that have shapes and no content.

The real network runs, forward and backward, under torch's FakeTensorMode. Its FLOPs are those of
FlopCounterMode; its memory is that of all tensors that live at once. Deep networks run with fewer
blocks, see :mod:`tasks.estimate.depth`.
"""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

from models.methods.costs import Gradient
from tasks.estimate.depth import by_depth


def _attention(query: Any, key: Any, value: Any, *args: Any, **options: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(made: Any, query: Any, key: Any, value: Any, *args: Any, **o: Any) -> int:
    return int(sdpa_backward_flop_count(made, query, key, value))


# attention on a CPU, which torch's own table leaves out; from shapes
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


ROWS = 16  # the peak bends where another moment becomes the largest: a chord over usual batches


@dataclass(frozen=True)
class Cost:
    """Of a call for n rows: ``flops`` n in all, its backward pass included; bytes that are held
    until the backward pass, and at most at any moment, both as (constant, per row).
    """

    flops: float
    held: tuple[float, float]
    peak: tuple[float, float]

    def held_by(self, rows: float) -> float:
        return self.held[0] + self.held[1] * rows

    def peak_of(self, rows: float) -> float:
        return self.peak[0] + self.peak[1] * rows


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations have made and nobody has dropped yet, and the most of
    them at once; ``known``: tensors that do not count.
    """

    def __init__(self, known: Any = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: Any = WeakIdKeyDictionary()
        for tensor in known:
            self.seen[tensor.untyped_storage()] = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        if storage in self.seen:
            return
        self.seen[storage] = True
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.live -= size


class Measured(NamedTuple):
    """One simulated call: ``flops``, ``held`` and ``peak`` bytes."""

    flops: float
    held: float
    peak: float


def simulate(
    make: Callable[[], Any],
    inputs: Callable[[int], dict[str, Tensor]],
    call: Callable[[Any, dict[str, Tensor]], Tensor],
    gradient: Gradient,
    precision: torch.dtype = torch.float32,
    base: Any = None,
) -> Cost:
    """The cost of ``call(network, inputs(n))`` for the network that ``make`` builds, on any device,
    the meta device too. ``precision``: of autocast; ``base``: the network that ``make`` copies,
    so that a deep one need not be built whole.
    """

    def measured(network: Any) -> tuple[float, ...]:
        rows = (_once(network, inputs(n), call, gradient, precision) for n in (1, ROWS))
        return tuple(figure for each in rows for figure in each)

    found = _by_depth(make, base, measured)
    one, many = Measured(*found[:3]), Measured(*found[3:])
    flops = (many.flops - one.flops) / (ROWS - 1)
    held, peak = (many.held - one.held) / (ROWS - 1), (many.peak - one.peak) / (ROWS - 1)
    return Cost(flops, (one.held - held, held), (one.peak - peak, peak))


def count_flops(
    make: Callable[[], Any],
    inputs: Callable[[int], dict[str, Tensor]],
    call: Callable[[Any, dict[str, Tensor]], Tensor],
    base: Any = None,
) -> float:
    """FLOPs of a forward pass for one row; ``base`` as for :func:`simulate`."""

    def counted(network: Any) -> tuple[float]:
        counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
        with torch.no_grad(), counter:
            call(network, inputs(1))
        return (float(counter.get_total_flops()),)

    return _by_depth(make, base, counted)[0]


def _by_depth(
    make: Callable[[], Any], base: Any, measure: Callable[[Any], tuple[float, ...]]
) -> tuple[float, ...]:
    """What `measure` gives for the network of `make` with weights without content."""
    deep = make() if base is None else base

    def once() -> tuple[float, ...]:
        made = deep if base is None else make()
        with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return measure(without_content(made))

    return by_depth(deep, once)


def without_content(network: Any) -> Any:
    """A copy with the same structure, whose weights are fake tensors on the CPU."""
    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        shape = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
        memo[id(parameter)] = nn.Parameter(shape, requires_grad=parameter.requires_grad)
    for buffer in network.buffers():
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")
    return copy.deepcopy(network, memo)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Cycles, which checkpointing leaves behind, live to the end. When Python's collector would run
    is chance, and figures of a deep network are differences of those of shallow ones.
    """
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _once(
    network: Any,
    given: dict[str, Tensor],
    call: Callable[[Any, dict[str, Tensor]], Tensor],
    gradient: Gradient,
    precision: torch.dtype,
) -> Measured:
    known = [*network.parameters(), *network.buffers()] if isinstance(network, nn.Module) else []
    if gradient == "input":
        given = {**given, "x": given["x"].requires_grad_(True)}
    live = LiveBytes([*known, *given.values()])
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    half = precision != torch.float32
    with _without_collector(), torch.set_grad_enabled(gradient != "none"), live, counter:
        with torch.autocast("cpu", precision, enabled=half):
            made = call(network, given)
        held = live.live
        if gradient != "none":
            made.float().square().mean().backward()
    if isinstance(network, nn.Module):
        network.zero_grad(set_to_none=True)
    return Measured(int(counter.get_total_flops()), held, live.peak)
