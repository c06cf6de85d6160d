"""Teachers from one file outside the package through every stage, to a student's folder that opens
with diffusers alone.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler

from models.common.errors import InputError
from models.methods import own_network
from models.methods.export import open_student
from tasks.config.schema import load_params
from tasks.data.student import open_student as open_own
from tasks.data.teacher import load_teacher
from tasks.evaluation.load import untrained_form
from tasks.stages import dataset, evaluation, student, teacher, trajectories
from tests.models.evaluation.test_features import SHIPPED
from tests.tasks.distillation import STUDENT, TRAJECTORIES, settings
from tests.tasks.stages.test_teacher_extension import factory, root

__all__ = ["root"]  # the fixture
FAMILY = {"source": "pretrained", "path": "mine"}
FACTORY = factory(arguments={"channels": 1, "length": 8, "images": True})


def prepare(root: Path, section: dict[str, Any], method: dict[str, Any], *extensions: str) -> Any:
    """Params of a tiny project whose teacher comes from toy_teacher.py."""
    shutil.copytree(SHIPPED, root / "data" / "pretrained" / SHIPPED.name)
    content = json.loads(settings(evaluation={"samples": 8, "bootstrap": 0}).model_dump_json())
    content |= {"teacher": section, "extensions": ["toy_teacher.py", *extensions]}
    content["trajectories"] |= TRAJECTORIES | {"grid": {"kind": "index"}}
    content["method"] = {"kind": "sigdeg", "nfe": [4, 2], "calibrate": False} | method
    content["student"] |= STUDENT | {"validate_every": 2, "checkpoint_every": 2}
    content["evaluation"] |= {"baselines": ["ddim"], "neighbours": 2}
    (root / "params.yaml").write_text(json.dumps(content))
    params = load_params(root / "params.yaml")
    if section is FAMILY:
        torch.manual_seed(1)
        network = sys.modules["toy_teacher"].ToyNet()
        DDPMPipeline(network, DDPMScheduler(clip_sample=False)).save_pretrained(root / "mine")
    return params


@pytest.mark.parametrize(
    ("section", "method"),
    [
        (FAMILY, {"inputs": "signature"}),
        (FAMILY, {"inputs": "none", "conditioning_limit": None, "look_ahead": 0.0}),
        (FACTORY, {"inputs": "signature"}),
        (FACTORY, {"inputs": "none", "trainable": "lora", "lora_rank": 2}),
    ],
    ids=["family", "family-none", "factory", "factory-none-lora"],
)
def test_all_stages(root: Path, section: dict[str, Any], method: dict[str, Any]) -> None:
    params = prepare(root, section, method)
    for stage in (dataset, teacher, trajectories, student, evaluation):
        stage.run(params, root)
    metrics = json.loads((root / "data/evaluation/metrics.json").read_text(encoding="utf-8"))
    assert metrics["load_back"]["ok"] and metrics["load_back"]["max_abs_difference"] <= 1e-4
    assert metrics["student"]["nfe2"] and metrics["untrained"]["nfe4"]
    folder, made = root / "data/student", load_teacher(root)
    opened = open_student(folder)
    toy = sys.modules["toy_teacher"]
    assert type(opened.unet) is (toy.ToyNet if section is FAMILY else toy.Net)
    channels = opened.unet.config.in_channels
    assert (channels == 1) == (method["inputs"] == "none") and opened.unet.config.out_channels == 1
    assert_weights(opened, made, json.loads((folder / "student.json").read_text())["best_step"])
    history = pd.read_csv(folder / "history.csv")
    assert (
        history["step"].iloc[-1] == 4 and np.isfinite(history.filter(like="student/")).any().all()
    )
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert ("mine" if section is FAMILY else "toy_teacher:make") in card
    # what needs this project stays at home
    code = next((folder / "unet").glob("*_????????.py")).read_text(encoding="utf-8")
    assert "models.teachers" not in code and "register_to_config" in code


def assert_weights(opened: Any, made: Any, best_step: int) -> None:
    """The untrained form denoises as the teacher; weights after some steps do not."""
    plain = untrained_form(opened, made).unet
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    extra = torch.ones(2, opened.unet.config.in_channels - 1, 8, 8)
    labels = {} if made.num_classes is None else {"class_labels": torch.tensor([0, 2])}
    given, t = torch.cat([x, extra], 1), torch.tensor([7, 7])
    with torch.no_grad():
        found = (each(given, t, **labels, return_dict=False)[0] for each in (plain, opened.unet))
        untrained, trained = found
        expected = made.output(x, 7.0, labels or None)
    torch.testing.assert_close(untrained, expected)
    assert ((trained - expected).abs().max() > 1e-5) == (best_step > 0)


def test_a_folder_of_other_code_is_not_run(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without the class, or with a class of that name and other code, a student stays closed."""
    params = prepare(root, FAMILY, {"inputs": "signature"})
    for stage in (dataset, teacher, trajectories, student):
        stage.run(params, root)
    folder = root / "data/student"
    again = tmp_path / "again"
    open_student(folder).save_pretrained(again)
    assert (again / "model_index.json").read_text() == (folder / "model_index.json").read_text()
    file = next((folder / "unet").glob("*_????????.py"))
    file.write_text("raise RuntimeError('this ran')\n" + file.read_text())
    assert type(open_student(folder).unet) is sys.modules["toy_teacher"].ToyNet  # its own class
    monkeypatch.setattr(own_network, "_imported", lambda base, name: iter(()))
    with pytest.raises(InputError, match="ToyNet of code of its own, which is not run here"):
        open_own(root, torch.device("cpu"))
