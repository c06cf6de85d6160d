"""Series through the stages: teacher, trajectories, student, its folder, the registry."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException

from models.common.errors import InputError
from models.methods.export import open_student
from tasks.config.schema import Params
from tasks.data.agreement import check_teacher_fits_dataset
from tasks.data.batches import TrainingStates
from tasks.data.dataset import load_manifest, load_split
from tasks.data.teacher import load_teacher
from tasks.evaluation.load_back import prove_loadable
from tasks.registry import registration, tracking
from tasks.stages import dataset, student, teacher
from tests.tasks.results import write_lock
from tests.tasks.series import make_series_root, save_series_teacher, series_settings

ALONE = """
import sys, numpy, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
made = pipe(5, num_inference_steps=2, generator=torch.Generator().manual_seed(3)).series
assert not {name.split(".")[0] for name in sys.modules} & {"models", "tasks", "flows"}
numpy.save(sys.argv[2], made)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with its student."""
    root = make_series_root(tmp_path_factory.mktemp("series") / "p")
    student.run(series_settings(), root)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "p")


def test_a_teacher_is_trained_on_scaled_states(root: Path) -> None:
    """It knows the scaling of its data, has no bound, and its samples are in the data's units."""
    spec = {"source": "train", "steps": 3, "batch_size": 8, "channels": [8, 16], "scales": [16],
            "layers_per_block": 1, "warmup": 1, "checkpoint_every": 2}  # fmt: skip
    teacher.run(series_settings(teacher=spec), root)
    made, manifest = load_teacher(root), load_manifest(root)
    assert made.shape == (1, 16) and made.clip is None
    assert made.codec.scaling == manifest["scaling"] and manifest["scaling"]["std"][0] > 15
    states = TrainingStates(root, made)[np.arange(100)]
    assert states.std() == pytest.approx(1, abs=0.1)
    series = torch.from_numpy(load_split(root, "train")[0][:100].copy())
    torch.testing.assert_close(made.decode(states), series, rtol=1e-4, atol=1e-3)


def test_a_pretrained_teacher_says_its_scale(root: Path, tmp_path: Path) -> None:
    place = tmp_path / "pretrained"
    shutil.copytree(root / "data/teacher", place)

    def run(**choices: Any) -> Any:
        teacher.run(
            series_settings(teacher={"source": "pretrained", "path": str(place), **choices}), root
        )
        return load_teacher(root).codec.scaling

    known = load_manifest(root)["scaling"]
    assert run() == known
    record = json.loads((place / "teacher.json").read_text())
    (place / "teacher.json").write_text(json.dumps(record | {"scaling": None}))
    assert run(scaling="dataset") == known and run(scaling="none") is None
    with pytest.raises(InputError, match="makes series and does not say in what scale") as caught:
        run()
    assert "\n" not in str(caught.value) and "teacher.scaling=dataset" in str(caught.value)


def test_teacher_and_dataset_agree_in_channels_and_length(root: Path) -> None:
    check_teacher_fits_dataset(load_teacher(root), root)
    dataset.run(series_settings(dataset={"length": 20}), root)
    with pytest.raises(InputError, match=r"1x16, data/dataset has 1x20.*dataset.length=16"):
        check_teacher_fits_dataset(load_teacher(root), root)
    dataset.run(series_settings(), root)
    save_series_teacher(root)
    two = {"kind": "rough_bergomi", "count": 60, "holdout": 20, "length": 16, "substeps": 1}
    content = series_settings().model_dump(mode="json") | {"dataset": two}
    dataset.run(Params.model_validate_json(json.dumps(content)), root)
    with pytest.raises(InputError, match=r"1x16, data/dataset has 2x16.*series of 1 channels"):
        check_teacher_fits_dataset(load_teacher(root), root)


def test_the_student_makes_series_in_the_datas_units(made: Path, tmp_path: Path) -> None:
    """ "np" and "pt" are the same series; "latent" the states; images are not what it makes. The
    folder opens with diffusers alone and makes the same.
    """
    pipe = open_student(made / "data/student")
    scaling = load_manifest(made)["scaling"]

    def draw(kind: str | None) -> Any:
        generator = torch.Generator().manual_seed(3)
        return pipe(5, num_inference_steps=2, generator=generator, output_type=kind)

    series, states = draw(None).series, draw("latent").series
    assert series.shape == (5, 1, 16) and series.dtype == np.float32
    torch.testing.assert_close(draw("pt").series, torch.from_numpy(series))
    wanted = states * scaling["std"][0] + scaling["mean"][0]
    np.testing.assert_allclose(series, wanted.numpy(), rtol=1e-5, atol=1e-4)
    assert np.abs(series).max() > 5
    with pytest.raises(ValueError, match="output_type 'pil': expected np, pt, latent for series"):
        draw("pil")
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_MODULES_CACHE": str(tmp_path / "m")}
    command = [sys.executable, "-I", "-c", ALONE, str(made / "data/student"), "made.npy"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "made.npy"), series, rtol=1e-4, atol=1e-3)


def test_the_best_weights_are_chosen_by_sig_w1(made: Path) -> None:
    history = pd.read_csv(made / "data/student/history.csv").set_index("step")
    record = json.loads((made / "data/student/student.json").read_text())
    scores = history[["sig_w1_4", "sig_w1_2"]].dropna()
    assert scores.index.tolist() == [0, 2, 4] and (scores > 0).all(axis=None)
    best = (scores / scores.loc[0]).mean(axis=1).idxmin()
    assert record["best_step"] == best and record["scores"] == scores.loc[best].to_dict()
    assert "student/spread_2" in history.columns


def test_the_card_speaks_of_series(made: Path) -> None:
    card = (made / "data/student/README.md").read_text()
    assert "network calls per series" in card and "150 training series" in card
    assert "(4, channels, length) in the data's units; channels: x" in card
    assert "image" not in card.replace("image_", "")


def test_mlflow_serves_series(root: Path) -> None:
    """As an array (n, C, L), which MLflow writes as JSON; mistakes are the caller's."""
    student_folder, params = root / "data/student", series_settings()
    (root / "data/evaluation").mkdir()
    row = {"title": "student", "sig_w1": 0.2}
    about = {"criterion": "sig_w1", "lower_is_better": True}
    metrics = {"evaluation": about, "student": {"nfe4": row, "nfe2": row}}
    (root / "data/evaluation/metrics.json").write_text(json.dumps(metrics))
    (root / "params.yaml").write_text(params.model_dump_json())
    write_lock(root, {})
    run = tracking.track_run(root, params)
    version = registration.register_student(root, params, run.run_id)
    assert version.created
    client = registration.MlflowClient()
    model = mlflow.pyfunc.load_model(f"models:/{version.name}/{version.number}")
    request = pd.DataFrame({"request": ["a", "b"]})
    made = model.predict(request, params={"num_series": 3, "seed": 7, "steps": 2})
    assert made.shape == (6, 1, 16) and made.dtype == np.float32
    pipe = open_student(student_folder)
    again = pipe(3, num_inference_steps=2, generator=torch.Generator().manual_seed(8)).series
    np.testing.assert_allclose(made[3:], again, rtol=1e-5, atol=1e-4)
    served = json.loads(json.dumps({"predictions": made.tolist()}))
    assert np.array(served["predictions"]).shape == (6, 1, 16)
    with pytest.raises(MlflowException, match="num_series = 0: expected 1 to 1024"):
        model.predict(request, params={"num_series": 0})
    registration.try_version(client, version.name, version.number, "nothing changed")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"method": {"kind": "swd"}}, r"method.kind = swd: makes images, the dataset makes series"),
        ({"student": {"criterion": "kid"}}, r"student.criterion = kid: a metric of images"),
        ({"evaluation": {"features": {"kind": "mnist"}}}, r"evaluation.features = mnist: the"),
    ],
)
def test_what_is_for_images_alone_is_refused(sections: dict[str, Any], message: str) -> None:
    content = series_settings().model_dump(mode="json")
    for name, values in sections.items():
        content[name] = values if name == "method" else content[name] | values
    with pytest.raises(ValueError, match=message):
        type(series_settings()).model_validate(content)


def test_the_folder_proves_that_it_opens_alone(made: Path) -> None:
    record = prove_loadable(made / "data/student")
    assert record["ok"] and record["max_abs_difference"] < 1e-4, record
