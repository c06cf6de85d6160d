"""Kinds of datasets by name, those of a file outside the package included."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from diffusers import DDPMPipeline

from models.common.errors import InputError
from tasks.config.presets import compose
from tasks.config.schema import load_params, params_dict
from tasks.data.dataset import load_manifest, load_split
from tasks.data.sources import SOURCES, DatasetSettings, register_source, settings_class
from tasks.stages import dataset, teacher
from tests.paths import PROJECT

HEAVY = ("torch", "pandas", "pyarrow", "PIL", "sklearn", "mlxtend", "scipy")


def test_params_know_every_kind_without_heavy_imports() -> None:
    code = (
        "import sys; from tasks.data.sources import SOURCES, settings_class\n"
        "for kind in SOURCES: assert settings_class(kind).model_fields['kind'].default == kind\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_name_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(DatasetSettings):
        pass

    monkeypatch.setitem(SOURCES, "other", Other)
    register_source("other", Other)  # the same again is no mistake
    assert settings_class("other") is Other
    with pytest.raises(InputError, match=r"dataset\.kind = mnist: registered already as tasks"):
        register_source("mnist", Other)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the file of docs/extending.md, and what is registered forgotten afterwards."""
    page = (PROJECT / "docs/extending.md").read_text()
    code = re.search(r"`discs\.py`:\n\n```python\n(.*?)```", page, re.DOTALL)
    assert code is not None
    (tmp_path / "discs.py").write_text(code[1])
    monkeypatch.setattr("tasks.data.sources.registry.SOURCES", SOURCES)
    monkeypatch.setitem(SOURCES, "discs", "")
    monkeypatch.delitem(SOURCES, "discs")
    monkeypatch.setitem(sys.modules, "discs", None)
    monkeypatch.delitem(sys.modules, "discs")
    return tmp_path


TINY_TEACHER = """
  source: train
  steps: 2
  batch_size: 8
  warmup: 1
  channels: [8, 16]
  layers_per_block: 1
  scales: [8]
  conditional: true
"""


def test_a_source_of_ones_own_runs_through_the_stages(project: Path) -> None:
    """The file that docs/extending.md shows: dataset, then a teacher trained on it."""
    (project / "params.yaml").write_text(
        "extensions: [discs.py]\n"
        "dataset: {kind: discs, count: 60, size: 8, holdout: 20, seed: 3}\n"
        f"teacher:{TINY_TEACHER}"
    )
    params = load_params(project / "params.yaml")
    dataset.run(params, project)
    manifest = load_manifest(project)
    assert manifest["counts"] == {"train": 40, "holdout": 20} and manifest["source"] == "discs"
    assert manifest["class_names"] == ["small", "large"]
    images, labels = load_split(project, "train")
    areas = images.reshape(40, -1).astype(float).sum(1)
    assert areas[labels == 1].min() > areas[labels == 0].max() and len(np.unique(labels)) == 2
    teacher.run(params, project)
    network = DDPMPipeline.from_pretrained(project / "data/teacher").unet
    assert (network.config.in_channels, network.config.sample_size) == (1, 8)


def test_the_command_on_the_page_composes(project: Path) -> None:
    page = (PROJECT / "docs/extending.md").read_text()
    command = re.search(r'make run ARGS="(extensions=\[discs\.py\].*)"', page)
    assert command is not None
    shutil.copytree(PROJECT / "conf", project / "conf")
    params = compose(project, overrides=command[1].split())
    settings = params.dataset
    assert type(settings).__name__ == "DiscsDataset" and params.extensions == ("discs.py",)
    assert params_dict(settings)["count"] == 3000 and settings.holdout == 1000
    assert len(settings.open(project).names) == 3000


def test_its_settings_are_checked_like_any_other(project: Path) -> None:
    file = project / "params.yaml"
    file.write_text("dataset: {kind: discs}\n")  # without its extension
    with pytest.raises(InputError, match=r"dataset\.kind = discs: expected one of 'mnist'"):
        load_params(file)
    file.write_text("extensions: [discs.py]\ndataset: {kind: discs, counts: 60}\n")
    with pytest.raises(InputError, match=r"dataset\.counts: unknown key.* did you mean count\?"):
        load_params(file)
