"""Seconds of steps, and how they grow."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

LINEAR = (
    1.15  # of the exponent: above it, and a step of a second or more grows faster than linearly
)
SHORT = 0.05  # s; below it the clock and the machine's other work decide


@contextmanager
def timed(steps: dict[str, float], name: str) -> Iterator[None]:
    """Put the seconds of the block into `steps[name]`."""
    start = time.perf_counter()
    yield
    steps[name] = time.perf_counter() - start


def exponent(seconds: Mapping[int, float]) -> float:
    """p in seconds ~ size^p by least squares on logarithms; NaN for fewer than two sizes."""
    if len(seconds) < 2:
        return math.nan
    points = [(math.log(size), math.log(max(spent, 1e-9))) for size, spent in seconds.items()]
    middle = [sum(axis) / len(points) for axis in zip(*points, strict=True)]
    above = sum((x - middle[0]) * (y - middle[1]) for x, y in points)
    return above / sum((x - middle[0]) ** 2 for x, _ in points)


def too_steep(seconds: Mapping[int, float]) -> bool:
    """Whether a step grows faster than linearly, by more than a short step's chance."""
    return max(seconds.values()) >= SHORT and exponent(seconds) > LINEAR
