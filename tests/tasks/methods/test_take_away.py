"""The form for a stock pipeline as a folder of its own, with a card that says how to sample."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flows import export as flows_export
from models.common.errors import InputError
from models.takeaway.lora_file import FILE
from tasks.methods.model_card import render
from tasks.methods.take_away import form_of, take_away, write_stock
from tests.models.takeaway.students import Made, make
from tests.tasks.registry.test_hub import METRICS, RECORD

SCHEDULER = {
    f"scheduler/{name}"
    for name in (
        "scheduler_config.json", "sigdeg_levels.py", "sigdeg_plan.py", "sigdeg_scheduler.py"
    )
}  # fmt: skip


def record_of(form: dict[str, Any], **origin: Any) -> dict[str, Any]:
    return RECORD | {"origin": RECORD["origin"] | origin, "stock": form, "nfe": [2]}


def project(made: Made, root: Path) -> Path:
    """A project with the student and its teacher."""
    shutil.copytree(made.folders[0], root / "data/student")
    shutil.copytree(made.folders[1], root / "data/teacher")
    record = record_of(made.form, prompt="a cat" if made.form["takes"] == "prompt" else None)
    (root / "data/student/student.json").write_text(json.dumps(record))
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """To read, not to change."""
    return make(tmp_path_factory.mktemp("made"), "sd")


@pytest.fixture
def root(made: Made, tmp_path: Path) -> Path:
    return project(made, tmp_path / "project")


def test_a_lora_goes_alone(root: Path, tmp_path: Path, made: Made) -> None:
    (root / "data/evaluation").mkdir()
    (root / "data/evaluation/metrics.json").write_text(json.dumps(METRICS))
    target = tmp_path / "mine"
    files = take_away(root, target)
    assert set(files) == {"README.md", "stock.json", FILE} | SCHEDULER
    assert files[FILE] == (target / FILE).stat().st_size
    tensors = load_file(target / FILE)
    assert {f"unet.{name}" for name in made.adapters} == set(tensors)
    card = (target / "README.md").read_text()
    for line in (
        'pipe = StableDiffusionPipeline.from_pretrained("owner/teacher", dtype=torch.float32)',
        'pipe.load_lora_weights("mine")',
        'pipe.scheduler = SigDEGScheduler.from_pretrained("mine", subfolder="scheduler")',
        'images = pipe(prompt="a cat", num_inference_steps=2, guidance_scale=1.0, height=16, '
        "width=16).images",
    ):
        assert f"\n{line}\n" in card, card
    assert "Guidance 3.5 is trained in" in card and "0.0276 [0.02, 0.035]" in card
    assert "DiffusionPipeline.from_pretrained(" not in card.replace("StableDiffusionPipeline", "")


def test_comfyui_s_keys(root: Path, tmp_path: Path) -> None:
    assert flows_export.main([str(tmp_path / "given"), "--keys", "other"]) == 2
    take_away(root, tmp_path / "mine", "comfyui")
    assert all(name.startswith("lora_unet_") for name in load_file(tmp_path / "mine" / FILE))
    assert json.loads((tmp_path / "mine/stock.json").read_text())["keys"] == "comfyui"
    assert "those that ComfyUI reads" in (tmp_path / "mine/README.md").read_text()
    kept = load_file(root / "data/student/stock" / FILE)
    assert not any(name.startswith("lora_unet_") for name in kept)


def test_a_network_goes_along(tmp_path: Path) -> None:
    made = make(tmp_path / "made", "ddpm", trainable="full")
    root = project(made, tmp_path / "project")
    files = take_away(root, tmp_path / "mine")
    assert "unet/diffusion_pytorch_model.safetensors" in files and FILE not in files
    card = (tmp_path / "mine/README.md").read_text()
    assert 'network = UNet2DModel.from_pretrained("mine", subfolder="unet")' in card
    assert "dtype=torch.float32, unet=network)" in card and "guidance" not in card
    with pytest.raises(InputError, match="data/student has no LoRA; use diffusers"):
        take_away(root, tmp_path / "other", "comfyui")


def test_the_student_s_own_card_has_both_ways(made: Made) -> None:
    card = render(record_of(made.form, prompt="a cat"))
    assert 'DiffusionPipeline.from_pretrained("path/of/this/folder", trust_remote_code' in card
    assert 'weight_name="stock/pytorch_lora_weights.safetensors"' in card
    other = render(record_of({"reason": "its network takes more"}))
    assert "Not possible: its network takes more. Use the folder's own pipeline" in other
    assert "own pipeline" not in render(RECORD)  # of a version before


def test_what_is_known_of_the_teacher(made: Made, root: Path) -> None:
    weights = {name.replace(".weight", ".default.weight"): v for name, v in made.adapters.items()}
    about = {"source": "/models/my-sd", "revision": None, "lora": "/x/style.safetensors"}
    (root / "data/teacher/teacher.json").write_text(json.dumps(about | {"lora_scale": 0.5}))
    form = form_of(made.student, weights, root)
    assert form["base"] == {"source": "my-sd", "lora": "style.safetensors", "lora_scale": 0.5}
    assert form["tensors"] == len(weights) and str(root) not in json.dumps(form)
    write_stock(form, weights, root)
    assert load_file(root / "stock" / FILE).keys() == {f"unet.{k}" for k in made.adapters}
    (root / "data/teacher/teacher.json").write_text(json.dumps({"source": "train"}))
    assert form_of(made.student, {}, root)["base"] == {"source": "path/of/the/teacher"}
    assert form_of(made.student, {}, root)["weights"] == "network"
    (root / "data/teacher/model_index.json").unlink()
    assert form_of(made.student, {}, root) == {
        "reason": "its teacher is not a pipeline of diffusers"
    }
    write_stock({"reason": "none"}, {"x": torch.zeros(1)}, root / "nowhere")


def test_what_cannot_be_taken_away_is_one_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="no student; run python -m tasks.stages.student first"):
        take_away(tmp_path, tmp_path / "mine")
    with pytest.raises(InputError, match="keys 'kohya': expected diffusers or comfyui"):
        take_away(root, tmp_path / "mine", "kohya")
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="mine: exists; expected a folder to be made"):
        take_away(root, tmp_path / "mine")
    monkeypatch.chdir(root)
    assert flows_export.main(["taken"]) == 0
    assert "taken: 7 files" in capsys.readouterr().out
    (root / "data/student/student.json").write_text(json.dumps(record_of({"reason": "widened"})))
    assert flows_export.main(["again"]) == 2
    told = capsys.readouterr().err
    assert "data/student has no form for a stock pipeline: widened" in told
    assert not (root / "again").exists() and told.count("\n") == 1
