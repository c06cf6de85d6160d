from __future__ import annotations

import pytest

from scripts.scaling import simulate


def test_workers_without_a_busy_driver_are_always_at_work() -> None:
    assert simulate(4, 400, 1.0, 0.0) == pytest.approx(1.0)


@pytest.mark.parametrize("seconds", [0.1, 0.5, 0.63])
def test_a_saturated_driver_sets_the_pace(seconds: float) -> None:
    """Below workers x driver = 0.64 s a shard, each task waits for the driver."""
    found = simulate(64, 20_000, seconds, 0.01)
    assert found == pytest.approx(seconds / (64 * 0.01), rel=0.02)


def test_one_worker_pays_the_driver_for_each_task() -> None:
    assert simulate(1, 100, 0.9, 0.1) == pytest.approx(0.9)
