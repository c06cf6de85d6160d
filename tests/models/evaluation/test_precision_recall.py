"""Precision and recall at known values; bad features of every metric."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.common.errors import InputError
from models.evaluation import precision_recall as module
from models.evaluation.base import MetricOptions, Samples, chunks
from models.evaluation.frechet import frechet_distance
from models.evaluation.kid import kid
from models.evaluation.precision_recall import Precision, Recall, precision_recall
from tests.models.evaluation.samples import normal


def test_precision_and_recall_at_known_values() -> None:
    x = normal(80, 5, 0)
    assert precision_recall(x, x) == (1.0, 1.0)
    assert precision_recall(x + 1000, x) == (0.0, 0.0)
    half = torch.cat([x[:40], x[:40] + 1000])
    assert precision_recall(half, x)[0] == 0.5
    # All fakes in one of two far clusters: precise, but half of the real data is missed.
    real = torch.cat([x, x + 1000])
    precision, recall = precision_recall(x[torch.arange(80)], real)
    assert precision == 1.0 and recall == 0.5


def test_precision_counts_by_hand() -> None:
    real = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # radii for k = 1: 1, 1, 2, 4
    fake = torch.tensor([[-1.5], [2.5], [11.0], [11.1]])  # radii for k = 1: 4, 4, 0.1, 0.1
    precision, recall = precision_recall(fake, real, neighbours=1)
    assert precision == 0.5  # 2.5 and 11.0 are inside
    assert recall == 0.75  # 7.0 is 4.5 from 2.5 and 4.0 from 11.0


def test_blocks_of_rows_give_the_same_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(150, 3, 0), normal(120, 3, 1, mean=0.4)
    whole, largest, distances = precision_recall(fake, real), 0, module._distances

    def watched(x: Tensor, y: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, len(x) * len(y))
        return distances(x, y)

    monkeypatch.setattr(module, "_distances", watched)
    monkeypatch.setattr(module, "chunks", lambda n, m: chunks(n, m, limit=8 * 150 * 7))
    assert precision_recall(fake, real) == whole and 0 < whole[0] < 1
    assert largest <= 150 * 9


@pytest.mark.parametrize("metric", [Precision, Recall])
def test_intervals_hold_the_value_and_sets_are_cut_alike(
    metric: type[Precision] | type[Recall],
) -> None:
    real, fake = Samples(features=normal(150, 3, 0)), Samples(features=normal(140, 3, 1, mean=0.4))
    estimate = metric(real, MetricOptions(resamples=300, few=100))(fake)
    assert estimate.low < estimate.value < estimate.high <= 1
    place = 0 if metric is Precision else 1
    assert fake.features is not None and real.features is not None
    assert estimate.value == precision_recall(fake.features[:100], real.features[:100])[place]


@pytest.mark.parametrize(
    ("fake", "words"),
    [
        (normal(5, 4, 0), r"features of shape \(5, 4\) against \(20, 3\)"),
        (normal(1, 3, 0), "expected .n, d. and .m, d. with n, m >= 2"),
        (normal(5, 3, 0) * float("nan"), "NaN or infinite"),
    ],
)
def test_bad_features_give_one_line(fake: Tensor, words: str) -> None:
    real = normal(20, 3, 1)
    for metric in (kid, frechet_distance, precision_recall):
        with pytest.raises(InputError, match=words):
            metric(fake, real)
    with pytest.raises(InputError, match="neighbours = 5: expected 1 to 4"):
        precision_recall(normal(5, 3, 0), real, 5)
