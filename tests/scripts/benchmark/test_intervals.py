from __future__ import annotations

import numpy as np
import pytest

from models.common.errors import InputError
from models.evaluation.base import Interval
from scripts.benchmark.intervals import combine

Z = 1.959964


def coverage(sampling: float, seeds_std: float, seeds: int, trials: int = 1500) -> float:
    """How often the interval holds the truth, 0, where all seeds share the chance of the samples
    and each has its own of the training.
    """
    rng = np.random.default_rng(0)
    shared = sampling * rng.standard_normal((trials, 1))
    values = shared + seeds_std * rng.standard_normal((trials, seeds))
    held = 0
    for row in values:
        found = combine([Interval(v, v - Z * sampling, v + Z * sampling) for v in row])
        held += found.low <= 0 <= found.high
    return held / trials


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 3.0])
def test_holds_the_truth_95_times_in_100(spread: float, seeds: int) -> None:
    """Whichever of the two kinds of chance is the larger."""
    assert 0.935 <= coverage(1.0, spread, seeds) <= 0.99


def test_chance_of_the_training_alone() -> None:
    assert coverage(0.0, 1.0, 3) == pytest.approx(0.95, abs=0.015)


def test_the_samples_chance_is_not_divided_by_the_number_of_seeds() -> None:
    one = Interval(1.0, 0.8, 1.3)
    found = combine([one] * 4)
    assert (found.low, found.high) == pytest.approx((0.8, 1.3))
    assert found.seeds == 4 and found.spread == 0.0


def test_formula_by_hand() -> None:
    found = combine([Interval(1.0, 0.9, 1.2), Interval(2.0, 1.9, 2.2), Interval(3.0, 2.9, 3.2)])
    q = 4.302653 / np.sqrt(3)  # sd is 1
    assert found.value == 2.0 and found.spread == 1.0
    assert found.low == pytest.approx(2 - np.hypot(0.1, q), abs=1e-5)
    assert found.high == pytest.approx(2 + np.hypot(0.2, q), abs=1e-5)


def test_one_seed_and_none() -> None:
    found = combine([Interval(1.0, 0.9, 1.2)])
    assert (found.low, found.high, found.spread) == (0.9, 1.2, None)
    with pytest.raises(InputError, match="no figures to combine: expected one of each"):
        combine([])


def test_an_interval_that_does_not_hold_its_value_counts_as_touching_it() -> None:
    found = combine([Interval(1.0, 1.1, 1.3)])
    assert (found.low, found.high) == pytest.approx((1.0, 1.3))
