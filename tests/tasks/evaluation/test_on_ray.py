"""Samples made by Ray workers: the figures of one process, from actors that stay."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from models.common.errors import InputError
from tasks.evaluation.on_ray import Made, in_order
from tasks.stages import evaluation, student
from tasks.training.ray_cluster import Actors
from tests.tasks.distillation import make_root, settings

SMALL = {
    "samples": 12,
    "batch_size": 3,
    "bootstrap": 10,
    "neighbours": 2,
    "baselines": ["ddim", "unipc"],
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_make_what_one_process_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_root(tmp_path / "project", classes=3)
    student.run(settings(student={"steps": 0}), root)
    evaluation.run(settings(evaluation=SMALL), root)
    shutil.move(root / "data/evaluation", root / "data/alone")
    begun, begin = [], Actors._begin

    def counted(self: Actors) -> None:
        begun.append(self)
        begin(self)

    monkeypatch.setattr(Actors, "_begin", counted)
    evaluation.run(settings(evaluation=SMALL | {"workers": 2}), root)
    assert len(begun) == 2  # for all samplers, since what an actor has loaded stays
    spread, alone = rows(root / "data/evaluation"), rows(root / "data/alone")
    pd.testing.assert_frame_equal(spread, alone, check_exact=True)


def rows(folder: Path) -> pd.DataFrame:
    """The table without what depends on the clock."""
    return pd.read_csv(folder / "table.csv").drop(columns="ms_per_image")


def made(*places: int) -> list[Made]:
    return [Made(place, torch.full((2, 1, 4, 4), float(place)), 0.5 + place) for place in places]


def test_batches_come_in_their_order_and_as_early_as_they_can() -> None:
    read: list[int] = []

    def results() -> Iterator[Made]:
        for item in made(1, 0, 3, 2):
            read.append(item.place)
            yield item

    ordered = in_order(results())
    images, milliseconds = next(ordered)
    assert read == [1, 0] and images.unique().tolist() == [0.0] and milliseconds == 0.5
    assert [ms for _, ms in ordered] == [1.5, 2.5, 3.5]


def test_a_mistake_is_raised_once_no_actor_is_at_work() -> None:
    read: list[Any] = []

    def results() -> Iterator[Made | InputError]:
        for item in (InputError("teacher: no such step"), *made(1, 2)):
            read.append(item)
            yield item

    with pytest.raises(InputError, match="^teacher: no such step$"):
        list(in_order(results()))
    assert len(read) == 3
