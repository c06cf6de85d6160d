"""No pickle is loaded, no foreign code runs unasked, paths stay inside the project, secrets stay
out of records.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.common.errors import InputError
from models.methods.export import open_student
from models.teachers.loading import load_denoiser, open_pipeline
from tasks.config.schema import Params, load_params
from tasks.data.shards import ShardSet
from tasks.stages import dataset
from tasks.utils.cli import stage_main
from tests.tasks.distillation import PROJECT, settings
from tests.tiny import save_teacher

UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "_pickle"}
CUSTOM = """
import os, pathlib
pathlib.Path({mark!r}).touch()
from diffusers import DDPMPipeline
class Custom(DDPMPipeline):
    pass
"""


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "the-payload-ran"


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    save_teacher(tmp_path)
    return tmp_path / "data" / "teacher"


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text and text
    return text


def test_the_payload_of_these_tests_works(mark: Path, tmp_path: Path) -> None:
    torch.save({"w": Payload(mark)}, tmp_path / "x.bin")
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize(
    "name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"]
)
def test_a_teacher_with_pickled_weights_is_refused(teacher: Path, mark: Path, name: str) -> None:
    """As .bin, and as a pickle that calls itself safetensors."""
    (teacher / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"conv_in.weight": Payload(mark)}, teacher / "unet" / name)
    with pytest.raises(InputError) as error:
        load_denoiser(teacher)
    assert "safetensors" in one_line(error) and str(teacher) in str(error.value)
    assert not mark.exists()


def test_the_teacher_stage_says_it_in_one_line(
    teacher: Path,
    mark: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tasks.stages import teacher as stage

    (teacher / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"conv_in.weight": Payload(mark)}, teacher / "unet" / "diffusion_pytorch_model.bin")
    shutil.move(teacher, tmp_path / "mine")
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        stage_main(stage.run, ["teacher.path=mine"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: teacher ") and said.count("\n") == 1
    assert not mark.exists()


def test_a_student_with_pickled_weights_is_refused(teacher: Path, mark: Path) -> None:
    index = json.loads((teacher / "model_index.json").read_text()) | {
        "_class_name": "SigDEGPipeline"
    }
    (teacher / "model_index.json").write_text(json.dumps(index))
    (teacher / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"conv_in.weight": Payload(mark)}, teacher / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises((OSError, ValueError)):
        open_student(teacher)
    assert not mark.exists()


def test_object_arrays_are_refused(mark: Path, tmp_path: Path) -> None:
    images: np.ndarray = np.empty(2, dtype=object)
    images[:] = [Payload(mark), Payload(mark)]
    np.savez(tmp_path / "images.npz", images=images, allow_pickle=True)
    params = Params.model_validate({"dataset": {"kind": "npz", "path": "images.npz"}})
    with pytest.raises(InputError) as error:
        dataset.run(params, tmp_path)
    assert "array images is not readable" in one_line(error)
    assert not mark.exists()


def test_a_shard_with_an_object_array_is_refused(mark: Path, tmp_path: Path) -> None:
    from tasks.stages import trajectories

    params = settings()
    save_teacher(tmp_path)
    dataset.run(params, tmp_path)
    trajectories.run(params, tmp_path)
    folder = tmp_path / "data" / "trajectories"
    shard = sorted(folder.rglob("Y.npy"))[0]
    array: np.ndarray = np.empty(1, dtype=object)
    array[:] = [Payload(mark)]
    shard.unlink()
    np.save(shard, array, allow_pickle=True)
    with pytest.raises((InputError, ValueError)):
        np.array(ShardSet(folder).array("train", "Y")[:])
    assert not mark.exists()


def test_a_torchscript_file_is_not_unpickled(mark: Path, tmp_path: Path) -> None:
    from models.evaluation.features import load_features

    torch.save(Payload(mark), tmp_path / "features.pt")
    with pytest.raises(InputError) as error:
        load_features("torchscript", path=tmp_path / "features.pt")
    assert "not a TorchScript file" in one_line(error)
    assert not mark.exists()


def custom_teacher(teacher: Path, mark: Path) -> None:
    (teacher / "pipeline.py").write_text(CUSTOM.format(mark=str(mark)))
    index = json.loads((teacher / "model_index.json").read_text())
    (teacher / "model_index.json").write_text(
        json.dumps(index | {"_class_name": ["pipeline", "Custom"]})
    )


def test_code_in_a_model_folder_runs_only_with_the_flag(teacher: Path, mark: Path) -> None:
    custom_teacher(teacher, mark)
    with pytest.raises(InputError) as error:
        open_pipeline(teacher)
    assert "trust_remote_code" in one_line(error)
    assert not mark.exists()
    assert type(open_pipeline(teacher, trust_remote_code=True)).__name__ == "Custom"
    assert mark.exists()


def test_foreign_code_is_not_needed_after_the_teacher_stage(
    teacher: Path, mark: Path, tmp_path: Path
) -> None:
    from tasks.data.teacher import load_teacher
    from tasks.stages import teacher as stage

    custom_teacher(teacher, mark)
    shutil.move(teacher, tmp_path / "mine")
    settings = {"source": "pretrained", "path": "mine", "trust_remote_code": True}
    stage.run(Params.model_validate({"teacher": settings}), tmp_path)
    mark.unlink()
    assert load_teacher(tmp_path).shape == (1, 8, 8)
    assert not mark.exists()


def test_code_of_a_network_runs_only_with_the_flag(teacher: Path, mark: Path) -> None:
    code = (
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nfrom diffusers import UNet2DModel\n"
    )
    (teacher / "unet" / "mine.py").write_text(code + "class Mine(UNet2DModel): pass\n")
    index = json.loads((teacher / "model_index.json").read_text())
    (teacher / "model_index.json").write_text(json.dumps(index | {"unet": ["mine", "Mine"]}))
    with pytest.raises(InputError, match="trust_remote_code: true"):
        open_pipeline(teacher)
    assert not mark.exists()


def test_the_flag_is_off_unless_written() -> None:
    assert load_params(PROJECT / "params.yaml").teacher.model_dump()["trust_remote_code"] is False


@pytest.mark.parametrize(
    "override",
    [
        "teacher.path=../other",
        "teacher.path=data/../../other",
        "teacher.path=~/models",
        "dataset={kind: folder, path: ../../etc}",
        "dataset={kind: npz, path: a/../../x.npz}",
        "dataset.exclude=../x.npz",
        "evaluation.rivals=[../student]",
        "evaluation.features={kind: torchscript, path: ../x.pt}",
    ],
)
def test_paths_stay_inside_the_project(override: str) -> None:
    with pytest.raises(InputError) as error:
        load_params(PROJECT / "params.yaml", [override])
    assert "expected a path inside the project" in one_line(error)


def test_absolute_paths_are_meant() -> None:
    assert (
        load_params(PROJECT / "params.yaml", ["teacher.path=/models/x"]).teacher.model_dump()[
            "path"
        ]
        == "/models/x"
    )


@pytest.mark.parametrize("key", ["registration.tracking_uri", "teacher.path"])
def test_credentials_in_params_are_refused_and_not_shown(key: str) -> None:
    with pytest.raises(InputError) as error:
        load_params(PROJECT / "params.yaml", [f"{key}=https://anna:geheim@host/x"])
    assert "environment variables" in one_line(error) and "geheim" not in str(error.value)


def test_values_of_secret_variables_do_not_reach_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.registry import store, tracking
    from tests.tasks.results import write_results

    monkeypatch.setenv("HF_TOKEN", "hf_qwertzuiop")
    root = write_results(tmp_path / "project")
    student = json.loads((root / "data/student/student.json").read_text())
    (root / "data/student/student.json").write_text(
        json.dumps(student | {"from": "https://hf_qwertzuiop@host/x"})
    )
    params = load_params(root / "params.yaml", ["teacher.path=/models/hf_qwertzuiop"])
    run = store.open_store(root, params).get_run(tracking.track_run(root, params).run_id)
    assert run.data.params["teacher.path"] == "/models/***"
    assert run.data.tags["student.from"] == "https://***@host/x"
    assert "hf_qwertzuiop" not in str(run.to_dictionary())


def test_the_code_loads_no_pickle() -> None:
    """Every loader is told so where it is called, and nothing imports an unpickler."""
    wanted = {
        "np.load": "allow_pickle",
        "torch.load": "weights_only",
        "from_pretrained": "use_safetensors",
    }
    seen = []
    for path in sorted(
        p for room in ("models", "tasks", "flows") for p in (PROJECT / room).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not UNPICKLERS & {alias.name.split(".")[0] for alias in node.names}, path
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in UNPICKLERS, path
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name == "AutoTokenizer.from_pretrained":
                    continue  # JSON and text, no weights
                for loader, keyword in wanted.items():
                    if name == loader or name.endswith(f".{loader}"):
                        given = {item.arg: ast.unparse(item.value) for item in node.keywords}
                        assert given.get(keyword) == (
                            "False" if keyword == "allow_pickle" else "True"
                        ), (path, name)
                        seen.append(loader)
    assert set(seen) == set(wanted)
