"""Metrics by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from models.common.errors import InputError
from models.evaluation.base import INPUTS, Metric
from models.evaluation.kid import KID
from models.evaluation.registry import METRICS, metric_class, register_metric
from tests.paths import PROJECT


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_says_what_it_is(name: str) -> None:
    metric = metric_class(name)
    assert issubclass(metric, Metric) and metric.name == name and metric.title
    assert metric.inputs and metric.inputs <= set(INPUTS)
    assert metric.lower_is_better in (True, False, None)


def test_names_are_known_without_torch() -> None:
    code = "import sys; import models.evaluation.registry; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_a_name_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.evaluation.registry.METRICS", dict(METRICS))
    register_metric("kid", "models.evaluation.kid:KID")
    register_metric("kid", KID)
    with pytest.raises(
        InputError, match="metric kid: the name is taken by models.evaluation.kid:KID"
    ):
        register_metric("kid", "other:Kid")
    register_metric("broken", "models.evaluation.base:Samples")
    with pytest.raises(InputError, match="metric broken: .*is no subclass of Metric"):
        metric_class("broken")
    with pytest.raises(InputError, match="metric fid: expected one of .*frechet"):
        metric_class("fid")
