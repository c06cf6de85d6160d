"""The split of a dataset: stratified, seeded, copies on one side."""

from __future__ import annotations

import numpy as np
import pytest

from models.common.errors import InputError
from tasks.data.image_dataset import split_rows


def test_split_is_stratified_and_seeded() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    train, holdout = split_rows(labels, 50, seed=3)
    assert sorted([*train, *holdout]) == list(range(1000))
    assert np.bincount(labels[holdout]).tolist() == [30, 15, 5]
    again = split_rows(labels, 50, seed=3)
    assert np.array_equal(train, again[0]) and np.array_equal(holdout, again[1])
    assert not np.array_equal(holdout, split_rows(labels, 50, seed=4)[1])
    assert np.mean(np.diff(labels[train]) < 0) > 0.1  # shuffled, not sorted by class


def test_groups_that_leave_no_way_are_told() -> None:
    labels, pairs = np.zeros(6, dtype=np.int64), np.array([0, 0, 1, 1, 2, 2])
    with pytest.raises(
        InputError, match=r"holdout = 3: identical images .* try dataset\.holdout=2"
    ):
        split_rows(labels, 3, 0, pairs)
    train, held = split_rows(labels, 2, 0, pairs)
    assert len(held) == 2 and len(set(pairs[held])) == 1 and len(train) == 4
    alone = np.arange(6)
    for mine, plain in zip(split_rows(labels, 3, 5, alone), split_rows(labels, 3, 5), strict=True):
        assert np.array_equal(mine, plain)
