"""Errors along paths."""

from __future__ import annotations

import pytest
import torch

from models.common.errors import InputError
from models.evaluation.base import Samples
from models.evaluation.paths import PathRMSE, path_rmse
from tests.models.evaluation.samples import normal


def test_path_rmse_per_step() -> None:
    reference = normal(50, 4 * 6, 0).reshape(50, 4, 1, 2, 3)
    offsets = torch.tensor([9.0, 0.0, 1.0, 2.0]).view(1, 4, 1, 1, 1)
    found = path_rmse(reference + offsets, reference, resamples=50, seed=0)
    assert [round(step.value, 9) for step in found] == [0.0, 1.0, 2.0]
    noisy = path_rmse(reference + 0.1 * torch.randn(50, 4, 1, 2, 3), reference, resamples=50)
    assert all(step.low < step.value < step.high for step in noisy)
    with pytest.raises(InputError, match="paths of shape"):
        path_rmse(reference[:, :3], reference)


def test_the_metric_is_the_error_of_the_last_state() -> None:
    reference = normal(50, 4 * 6, 0).reshape(50, 4, 1, 2, 3)
    metric = PathRMSE(Samples(paths=reference))
    assert metric(Samples(paths=reference + 2.0)).value == pytest.approx(2.0)
    with pytest.raises(InputError, match="no paths"):
        metric(Samples())
