"""Conditions: rows and names."""

from __future__ import annotations

import pytest
import torch

from models.common.errors import InputError
from models.teachers.conditioning import Condition, ConditionTable, class_condition


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


def test_a_table_gives_rows_by_number_and_the_null_row_as_often_as_asked() -> None:
    rows = Condition(states=torch.arange(12.0).view(3, 2, 2), mask=torch.ones(3, 2))
    null = Condition(states=torch.full((1, 2, 2), -1.0), mask=torch.zeros(1, 2))
    table = ConditionTable(rows, null)
    assert len(table) == 3
    given = table[torch.tensor([2, 2, 0])]
    assert given["states"][:, 0, 0].tolist() == [8.0, 8.0, 0.0]
    assert table.nulls(4)["states"].shape == (4, 2, 2) and float(table.nulls(4)["mask"].sum()) == 0
    for bad in (-1, 3):
        with pytest.raises(InputError, match="the table has 0 to 2"):
            table[torch.tensor([0, bad])]
    with pytest.raises(ValueError, match="no null condition"):
        ConditionTable(rows).nulls(1)


@pytest.mark.parametrize("null", [
    Condition(states=torch.zeros(1, 2, 2)),
    Condition(states=torch.zeros(1, 3, 2), mask=torch.zeros(1, 2)),
    Condition(states=torch.zeros(2, 2, 2), mask=torch.zeros(2, 2)),
])  # fmt: skip
def test_a_null_condition_of_another_kind_is_refused(null: Condition) -> None:
    rows = Condition(states=torch.zeros(3, 2, 2), mask=torch.ones(3, 2))
    with pytest.raises(InputError, match="expected one row of the same keys and shapes"):
        ConditionTable(rows, null)
