"""Deep networks by shallow ones: a run of alike blocks costs as much for each block.

A figure of a network whose runs of blocks have lengths L_1, L_2, ... is linear in each length once
there are a few blocks, so that it follows from one shallow form and one more for each length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

from torch import nn

LONG = 8
"""Shorter runs are kept whole."""
FEW, MORE = 2, 4


class Run(NamedTuple):
    """`length` alike blocks of a list, from place `first` on."""

    blocks: nn.ModuleList
    first: int
    length: int


def long_runs(network: Any) -> list[Run]:
    """The runs of at least `LONG` blocks of the same class with parameters of the same shapes;
    none of what is no module.
    """
    found: list[Run] = []
    if not isinstance(network, nn.Module):
        return found
    for blocks in (m for m in network.modules() if isinstance(m, nn.ModuleList)):
        place = 0
        for _, alike in groupby(blocks, key=_kind):
            length = len(list(alike))
            if length >= LONG:
                found.append(Run(blocks, place, length))
            place += length
    return found


def _kind(block: nn.Module) -> tuple[Any, ...]:
    parameters = [
        (name, tuple(p.shape), p.dtype, p.requires_grad) for name, p in block.named_parameters()
    ]
    return (type(block), *parameters)


def by_depth(network: Any, measure: Callable[[], Sequence[float]]) -> tuple[float, ...]:
    """What `measure` gives for the whole network, from calls of shallow ones where it has long
    runs.
    """
    runs = long_runs(network)
    lengths = sorted({run.length for run in runs})
    with shortened(runs, dict.fromkeys(lengths, FEW)):
        few = measure()
    total = list(few)
    for length in lengths:
        with shortened(runs, dict.fromkeys(lengths, FEW) | {length: MORE}):
            more = measure()
        for i, (low, high) in enumerate(zip(few, more, strict=True)):
            total[i] += (high - low) / (MORE - FEW) * (length - FEW)
    return tuple(total)


@contextmanager
def shortened(runs: Sequence[Run], kept: dict[int, int]) -> Iterator[None]:
    """Runs of length L have `kept[L]` blocks meanwhile."""
    lists = {id(run.blocks): run.blocks for run in runs}
    whole = {key: dict(blocks._modules) for key, blocks in lists.items()}
    for key, blocks in lists.items():
        left_out: set[int] = set()
        for run in (run for run in runs if run.blocks is blocks):
            left_out |= set(range(run.first + kept[run.length], run.first + run.length))
        stay = [block for i, block in enumerate(whole[key].values()) if i not in left_out]
        blocks._modules = {str(i): block for i, block in enumerate(stay)}
    try:
        yield
    finally:
        for key, blocks in lists.items():
            blocks._modules = whole[key]
