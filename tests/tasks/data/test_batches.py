"""Batches of paths: functions of the step alone, every path once an epoch, ranks apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.data.batches import BatchPlan, PathBatches
from tasks.data.shards import ShardSet, publish, write_shard

COUNT = 24


def shards_of(folder: Path, labelled: bool = True) -> ShardSet:
    """Paths whose every value is their number, in two shards."""
    rows = np.arange(COUNT)
    for name, part in (("a", rows[:10]), ("b", rows[10:])):
        Y = np.broadcast_to(part[:, None, None, None, None], (len(part), 3, 1, 2, 2)).astype(
            np.float16
        )
        xi = np.broadcast_to(part[:, None, None, None, None, None], (len(part), 2, 3, 1, 2, 2))
        labels = part % 5 if labelled else np.full(len(part), -1)
        content = {"Y": Y, "xi": -xi.astype(np.float16), "labels": labels.astype(np.int64)}
        write_shard(folder / "scratch" / name, content)
    publish(folder / "scratch", folder / "set", {}, {"train": ["a", "b"], "validation": ["a"]})
    return ShardSet(folder / "set")


def batches(
    shards: ShardSet, size: int, accumulate: int = 1, seed: int = 0, **place: int
) -> PathBatches:
    return PathBatches(shards, BatchPlan(size, accumulate, seed, torch.device("cpu"), **place))


@pytest.mark.parametrize(
    ("size", "accumulate", "world"), [(4, 1, 1), (5, 1, 1), (2, 3, 2), (7, 2, 3)]
)
def test_every_path_once_an_epoch(tmp_path: Path, size: int, accumulate: int, world: int) -> None:
    """Whatever the batch, its split over micro-batches and ranks, and though it may span two
    epochs.
    """
    shards = shards_of(tmp_path)
    ranks = [batches(shards, size, accumulate, rank=r, world=world) for r in range(world)]
    order = [
        row
        for step in range(COUNT)
        for micro in range(accumulate)
        for rank in ranks
        for row in rank.rows(step, micro)
    ]
    epochs = [order[e * COUNT : (e + 1) * COUNT] for e in range(len(order) // COUNT)]
    assert len(epochs) >= 4
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_ranks_share_a_union(tmp_path: Path) -> None:
    """Two ranks of 4 take together, and apart, what one of 8 takes."""
    shards = shards_of(tmp_path)
    whole, parts = batches(shards, 8), [batches(shards, 4, rank=r, world=2) for r in range(2)]
    for step in (0, 1, 2, 7):
        rows = [part.rows(step, 0) for part in parts]
        assert not set(rows[0]) & set(rows[1])
        np.testing.assert_array_equal(np.concatenate(rows), whole.rows(step, 0))


def test_stateless(tmp_path: Path) -> None:
    """Any order of calls gives the same batches; the seed gives others."""
    shards = shards_of(tmp_path)
    forward, backward = batches(shards, 5, 2), batches(shards, 5, 2)
    places = [(step, micro) for step in range(12) for micro in range(2)]
    seen = {place: forward(*place, 0) for place in places}
    for place in reversed(places):
        again = backward(*place, 0)
        assert torch.equal(again.Y, seen[place].Y) and torch.equal(again.xi, seen[place].xi)
        assert again.step == place[0]
    other = [batches(shards, 5, 2, seed=1).rows(*place).tolist() for place in places]
    assert other != [forward.rows(*place).tolist() for place in places]


def test_content(tmp_path: Path) -> None:
    """The rows' own arrays, single precision, labels where there are any."""
    source = batches(shards_of(tmp_path / "labelled"), 6)
    batch, rows = source(3, 0, 0), torch.as_tensor(source.rows(3, 0))
    assert batch.Y.shape == (6, 3, 1, 2, 2) and batch.xi.shape == (6, 2, 3, 1, 2, 2)
    assert batch.Y.dtype == batch.xi.dtype == torch.float32
    assert torch.equal(batch.Y[:, 2, 0, 1, 1], rows.float()) and torch.equal(
        batch.xi[:, 1, 2, 0, 0, 0], -rows.float()
    )
    assert batch.condition is not None
    assert torch.equal(batch.condition["class_labels"], rows % 5)
    assert batches(shards_of(tmp_path / "bare", labelled=False), 6)(3, 0, 0).condition is None


def test_real_images_beside_the_paths(tmp_path: Path) -> None:
    """As many as paths, in [-1, 1], at random; by step, micro-batch, seed and rank alone; the paths
    stay the same.
    """
    shards = shards_of(tmp_path)
    images = torch.arange(256.0)[:, None, None, None].expand(256, 1, 2, 2) / 127.5 - 1

    def with_images(**choices: int) -> PathBatches:
        source = batches(shards, 8, 2, **choices)
        assert source(0, 0, 0).real is None
        source.real = images
        return source

    def drawn(source: PathBatches) -> list[list[int]]:
        given = [source(step, micro, 0).real for step in range(8) for micro in range(2)]
        assert all(
            real is not None and real.shape == (8, 1, 2, 2) and real.dtype == torch.float32
            for real in given
        )
        return [
            ((real[:, 0, 1, 0] + 1) * 127.5).round().int().tolist()
            for real in given
            if real is not None
        ]

    plain = drawn(with_images())
    assert drawn(with_images()) == plain == drawn(with_images(rank=0, world=2))
    assert len({tuple(rows) for rows in plain}) == 16
    seen = np.concatenate(plain)
    assert seen.min() < 32 and seen.max() >= 224 and len(set(seen)) > 80
    for other in (with_images(rank=1, world=2), with_images(seed=1)):
        assert not any(mine == theirs for mine, theirs in zip(plain, drawn(other), strict=True))
    black, white = batches(shards, 8), batches(shards, 8)
    black.real, white.real = images[:1], images[255:]
    assert torch.equal(black(0, 0, 0).real, -torch.ones(8, 1, 2, 2))
    assert torch.equal(white(0, 0, 0).real, torch.ones(8, 1, 2, 2))
    assert torch.equal(white(3, 0, 0).Y, batches(shards, 8)(3, 0, 0).Y)
