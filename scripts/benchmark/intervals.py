"""One figure from several training seeds, with an interval that holds both kinds of chance: which
samples were drawn, and how the training happened to go.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from models.common.errors import InputError
from models.evaluation.base import Interval

FORMULA = """\
A figure v_s of seed s comes with its 95 % bootstrap interval [a_s, b_s]. The table shows their mean
v over the S seeds, and the interval from v - sqrt(mean (v_s - a_s)^2 + q^2) to
v + sqrt(mean (b_s - v_s)^2 + q^2), where q = t sd(v_s) / sqrt(S) and t is the 97.5 % point of
Student's law with S - 1 degrees of freedom. The first term is the chance of the samples. It is not
divided by S, since all seeds are measured with the same noise and the same held-out data. The
second is the spread of the seeds, with the factor that few seeds need. With one seed q is unknown
and left out: such an interval is marked with an asterisk and says nothing about other seeds."""


@dataclass(frozen=True)
class Combined:
    """The mean over ``seeds`` seeds and its interval; ``spread``: their standard deviation, None
    for one seed.
    """

    value: float
    low: float
    high: float
    seeds: int
    spread: float | None


def combine(figures: Sequence[Interval], level: float = 0.95) -> Combined:
    """The figures of all seeds as one, by FORMULA; InputError for none."""
    if not figures:
        raise InputError("no figures to combine: expected one of each training seed")
    values = np.array([figure.value for figure in figures])
    # a bootstrap interval need not hold the value that it belongs to
    below = np.array([max(0.0, figure.value - figure.low) for figure in figures])
    above = np.array([max(0.0, figure.high - figure.value) for figure in figures])
    seeds, spread, q = len(values), None, 0.0
    if seeds > 1:
        spread = float(values.std(ddof=1))
        q = float(t.ppf((1 + level) / 2, seeds - 1)) * spread / math.sqrt(seeds)
    low, high = (math.sqrt(float(np.mean(side**2)) + q**2) for side in (below, above))
    value = float(values.mean())
    return Combined(value, value - low, value + high, seeds, spread)
