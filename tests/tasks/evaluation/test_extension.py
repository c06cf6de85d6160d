"""A metric from one file outside the package: named in the params, measured, ranked by, reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from models.evaluation.registry import METRICS
from tasks.config.schema import load_params
from tasks.evaluation.extractor import FEATURES
from tasks.stages.evaluation import run
from tests.models.evaluation.test_features import SHIPPED
from tests.tasks.stages.test_evaluation import SETTINGS, gaussian, make_inputs

METRIC = '''
from models.evaluation.base import Estimate, Metric, Samples
from models.evaluation.registry import register_metric


class EdgeGap(Metric):
    """How far the mean step between neighbouring pixels is from that of real images."""

    name = "edge_gap"
    title = "Edge gap"
    lower_is_better = True
    inputs = frozenset({"images"})

    def __call__(self, fake: Samples) -> Estimate:
        real = edges(self.real.images).mean()
        return Estimate(abs(self.mean(edges(fake.images)).draws - float(real)))


def edges(images):
    return images.diff(dim=-1).abs().flatten(1).mean(1)


register_metric("edge_gap", "edge_gap:EdgeGap")
'''


def test_a_metric_from_outside_is_measured_and_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.evaluation.registry.METRICS", METRICS)
    (tmp_path / "edge_gap.py").write_text(METRIC)
    chosen = {"metrics": ["kid", "edge_gap"], "criterion": "edge_gap"}
    evaluation = json.loads(SETTINGS.model_copy(update={"metrics": ("kid",)}).model_dump_json())
    content = {"extensions": ["edge_gap.py"], "evaluation": evaluation | chosen}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    params = load_params(tmp_path / "params.yaml")
    shutil.copytree(SHIPPED, tmp_path / FEATURES)
    (tmp_path / "data" / "student").mkdir()
    monkeypatch.setattr(
        "tasks.stages.evaluation.load_inputs", lambda params, root: make_inputs(untrained=0.9)
    )
    monkeypatch.setattr("tasks.stages.evaluation.prove_loadable", lambda folder: {"ok": True})
    run(params, tmp_path)
    folder = tmp_path / "data" / "evaluation"
    metrics = json.loads((folder / "metrics.json").read_text())
    with np.load(folder / "samples.npz", allow_pickle=False) as samples:
        edges = np.abs(np.diff(samples["student_nfe10"] / 127.5, axis=-1)).mean()
    real = gaussian(1).clamp(-1, 1).diff(dim=-1).abs().mean()
    student = metrics["student"]["nfe10"]
    assert student["edge_gap"] == pytest.approx(abs(edges - float(real)), abs=0.01)
    assert student["edge_gap_low"] < student["edge_gap_high"]
    assert set(metrics["difference"]["nfe5"]["to_untrained"]) == {
        "edge_gap", "edge_gap_low", "edge_gap_high",
    }  # fmt: skip
    best = metrics["best_training_free"]["nfe10"]
    table = pd.read_csv(folder / "table.csv")
    rivals = table[(table["group"] == "baseline") & (table["nfe"] == 10)]
    assert best["sampler"] == rivals.loc[rivals["edge_gap"].idxmin(), "sampler"]
    assert metrics["evaluation"]["criterion"] == "edge_gap"
    page = (folder / "report.html").read_text()
    assert "Ranked by Edge gap" in page and "Edge gap (lower is better)" not in page
