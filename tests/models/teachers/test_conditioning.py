"""Conditions: rows and names."""

from __future__ import annotations

import pytest
import torch

from models.teachers.conditioning import Condition, class_condition


def condition() -> Condition:
    return Condition(labels=torch.tensor([2, 0, 2]), states=torch.arange(12.0).view(3, 2, 2))


def test_rows_and_names() -> None:
    given = condition()
    assert len(given) == 3 and set(given) == {"labels", "states"} == set(given.keys())
    assert dict(**given)["labels"].tolist() == [2, 0, 2] and "labels" in given
    mask = torch.tensor([True, False, True])
    for rows in (slice(0, 3, 2), torch.tensor([0, 2]), mask):
        chosen = given[rows]
        assert len(chosen) == 2 and chosen["labels"].tolist() == [2, 2]
        assert torch.equal(chosen["states"], given["states"][[0, 2]])


def test_cat_repeat_and_groups() -> None:
    given = condition()
    twice = Condition.cat([given, given[1:]])
    assert twice["labels"].tolist() == [2, 0, 2, 0, 2]
    assert given.repeat(2)["labels"].tolist() == [2, 0, 2, 2, 0, 2]
    assert class_condition(torch.tensor([5, 1, 5, 3])).groups().tolist() == [2, 0, 2, 1]  # type: ignore[union-attr]
    groups = twice.groups().tolist()  # the same label with another text is another group
    assert groups[1] == groups[3] and groups[2] == groups[4] and len(set(groups)) == 3


def test_what_is_no_condition() -> None:
    with pytest.raises(ValueError, match="same number of rows"):
        Condition(a=torch.zeros(2), b=torch.zeros(3))
    with pytest.raises(ValueError, match="at least one tensor"):
        Condition()
    with pytest.raises(ValueError, match="expected the same keys"):
        Condition.cat([Condition(a=torch.zeros(2)), Condition(b=torch.zeros(2))])
    assert class_condition(None) is None and class_condition(torch.tensor([-1, -1])) is None
