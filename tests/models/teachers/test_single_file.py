"""Checkpoints in one file, beside a pipeline folder that says what they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from models.common.errors import InputError
from models.teachers.loading import denoiser_of_pipeline
from models.teachers.single_file import open_single_file
from tests.models.teachers.original_format import original
from tests.models.teachers.pipelines import build
from tests.models.teachers.texts import PIXELS, PROMPTS
from tests.tiny import perturbed


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The folder of another model of the same kind, without weights."""
    folder = tmp_path / "config"
    build("sd")[0].save_pretrained(folder)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    return folder


def tuned() -> Any:
    pipe = build("sd")[0]
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        perturbed(part)
    return pipe


def saved(folder: Path, weights: dict[str, Any]) -> Path:
    save_file(weights, folder / "tuned.safetensors")
    return folder / "tuned.safetensors"


def refused(file: Path, config: Path | None) -> str:
    with pytest.raises(InputError) as caught:
        open_single_file(file, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_fine_tune_is_the_teacher_that_it_is_as_a_folder(tmp_path: Path, config: Path) -> None:
    """Network, autoencoder and text encoder are those of the file."""
    pipe = tuned()
    found = open_single_file(saved(tmp_path, original(pipe)), config)
    mine, theirs = (denoiser_of_pipeline(p, size=PIXELS) for p in (found, pipe))
    x = torch.randn((2, *theirs.shape), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answers = [
            each.output(x, 400.0, each.encode_prompts(p, PROMPTS))  # type: ignore[attr-defined]
            for each, p in ((mine, found), (theirs, pipe))
        ]
        torch.testing.assert_close(*answers)
        torch.testing.assert_close(mine.decode(x), theirs.decode(x))


def test_weights_that_are_missing_or_left_over_are_refused(tmp_path: Path, config: Path) -> None:
    weights = original(tuned())
    key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    text = "cond_stage_model.transformer.text_model.final_layer_norm.weight"
    for gone, words in {key: "weights are missing", text: "of its text_encoder are not"}.items():
        lacking = {name: value for name, value in weights.items() if name != gone}
        assert words in refused(saved(tmp_path, lacking), config)
    further = weights | {key.replace("blocks.0", "blocks.1"): torch.ones(8, 8)}
    assert "weights of the file have no place" in refused(saved(tmp_path, further), config)
    wider = weights | {key: torch.ones(16, 16)}
    assert "does not fit the StableDiffusionPipeline" in refused(saved(tmp_path, wider), config)


def test_a_mark_of_v_prediction_is_heeded(tmp_path: Path, config: Path) -> None:
    file = saved(tmp_path, original(tuned()) | {"v_pred": torch.zeros(0)})
    assert "marked as v-prediction, the scheduler of" in refused(file, config)
    settings = config / "scheduler" / "scheduler_config.json"
    options = json.loads(settings.read_text()) | {"prediction_type": "v_prediction"}
    settings.write_text(json.dumps(options))
    assert denoiser_of_pipeline(open_single_file(file, config)).prediction_type == "v_prediction"


def test_what_is_no_checkpoint(tmp_path: Path, config: Path) -> None:
    file = saved(tmp_path, original(tuned()))
    assert "set teacher.config to a diffusers pipeline folder" in refused(file, None)
    assert "no model_index.json; expected a diffusers" in refused(file, tmp_path)
    (tmp_path / "a.ckpt").write_bytes(b"x")
    assert "pickled weights, which can run code" in refused(tmp_path / "a.ckpt", config)
    (tmp_path / "b.safetensors").write_bytes(b"x")
    assert "not readable as .safetensors" in refused(tmp_path / "b.safetensors", config)
    save_file({"lora_unet_a.lora_up.weight": torch.ones(2)}, tmp_path / "c.safetensors")
    assert "a LoRA, not a model" in refused(tmp_path / "c.safetensors", config)
    build("dit")[0].save_pretrained(tmp_path / "dit")
    assert "which diffusers opens from a folder alone" in refused(file, tmp_path / "dit")
