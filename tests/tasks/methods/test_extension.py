"""A method in one file outside the package: through every stage to a student's folder that samples
by itself.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from models.common.errors import InputError
from models.methods.export import open_student
from models.methods.multistep_pipeline import MultistepPipeline
from models.methods.registry import METHODS
from tasks.config.schema import Params, load_params
from tasks.evaluation.load_back import prove_loadable
from tasks.stages import evaluation, student
from tests.paths import PROJECT
from tests.tasks.distillation import make_root, settings

EXAMPLE = PROJECT / "docs" / "examples" / "one_step.py"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Params]]:
    """A tiny project whose params name the example."""
    root = make_root(tmp_path_factory.mktemp("project"))
    shutil.copy(EXAMPLE, root / "one_step.py")
    content = json.loads(settings(evaluation={"samples": 8, "bootstrap": 0}).model_dump_json())
    content |= {"method": {"kind": "one_step"}, "extensions": ["one_step.py"]}
    content["evaluation"] |= {"baselines": ["ddim"], "neighbours": 2}
    (root / "params.yaml").write_text(json.dumps(content))
    before = dict(METHODS)
    yield root, load_params(root / "params.yaml")
    METHODS.clear()
    METHODS.update(before)


@pytest.fixture(scope="module")
def trained(project: tuple[Path, Params]) -> Path:
    root, params = project
    student.run(params, root)
    return root


def test_it_trains_and_its_loss_falls(trained: Path, project: tuple[Path, Params]) -> None:
    record = json.loads((trained / "data/student/student.json").read_text())
    assert record["method"] == {"kind": "one_step", "nfe": [1], "power": 2}
    assert record["nfe"] == [1] and record["steps"] == 4
    history = pd.read_csv(trained / "data/student/history.csv")
    assert np.isfinite(history["student/error"].dropna()).all() and "kid_1" in history
    training = student.build_training(project[1], trained, trained / "scratch", torch.device("cpu"))
    batch = training.batches(0, 0, 0)
    stream = torch.Generator().manual_seed(0)
    first = float(training.method.loss("student", batch, stream)[0].detach())
    optimizer = torch.optim.Adam(training.method.networks["student"].parameters(), 3e-3)
    for _ in range(10):
        optimizer.zero_grad()
        torch.autograd.backward(training.method.loss("student", batch, stream)[0])
        optimizer.step()
    assert float(training.method.loss("student", batch, stream)[0].detach()) < 0.9 * first


def test_its_folder_samples_by_itself(trained: Path) -> None:
    folder = trained / "data/student"
    pipeline = open_student(folder)
    assert isinstance(pipeline, MultistepPipeline) and pipeline.nfe == [1]
    assert "One-step regression student" in (folder / "README.md").read_text()
    images = pipeline(2, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert images.shape == (2, 1, 8, 8) and images.std() > 0
    record = prove_loadable(folder)
    assert record["ok"] and record["max_abs_difference"] <= 1e-4, record


def test_it_is_evaluated_without_being_known(trained: Path, project: tuple[Path, Params]) -> None:
    evaluation.run(project[1], trained)
    metrics: dict[str, Any] = json.loads(
        (trained / "data/evaluation/metrics.json").read_text(encoding="utf-8")
    )
    assert metrics["student"]["nfe1"] and metrics["untrained"]["nfe1"]
    assert "Student One-step regression" in (trained / "data/evaluation/report.html").read_text()


def test_a_mistake_in_its_settings_is_one_line(project: tuple[Path, Params]) -> None:
    with pytest.raises(InputError, match=r"method\.power = 3"):
        load_params(project[0] / "params.yaml", ["method.power=3"])


def test_the_docs_quote_the_example() -> None:
    """docs/extending.md shows the file as it is."""
    page = (PROJECT / "docs" / "extending.md").read_text(encoding="utf-8")
    code = EXAMPLE.read_text(encoding="utf-8")
    quoted = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert any(block.strip() == code.strip() for block in quoted)
    assert len(code.splitlines()) <= 65
