"""A text-to-image teacher with random weights through every stage, prompts in the place of images,
to a student's folder that diffusers alone opens and samples from prompts.
"""

from __future__ import annotations

import json
import shutil
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
from tasks.data.conditions import prompts_of_rows
from tasks.data.teacher import load_teacher
from tasks.data.trajectories import open_trajectories
from tasks.evaluation.load import untrained_form
from tasks.evaluation.stock_back import prove_stock
from tasks.methods import text_parts
from tasks.registry import promotion, registration, tracking
from tasks.stages import conditions, dataset, evaluation, student, teacher, trajectories
from tests.models.evaluation.test_features import SHIPPED
from tests.tasks.prompts import HELD_OUT, PROMPTS, settings, write_inputs
from tests.tasks.results import write_lock

TRAIN = len(PROMPTS) - HELD_OUT
LORA = {"trainable": "lora", "lora_rank": 2}
STOCK = {"inputs": "none", "conditioning_limit": None, "nfe": [2]}
SWD = {
    "kind": "swd", "schedule": {"kind": "given", "pairs": [[1.0, 4], [0.6, 8]]},
    "dmd": {"samples": 8, "steps": 2}, **LORA,
}  # fmt: skip


def run(root: Path, params: Params) -> Path:
    """All stages; the encoders are not there while later stages than `conditions` run."""
    write_inputs(root)
    shutil.copytree(SHIPPED, root / "data" / "pretrained" / SHIPPED.name)
    (root / "params.yaml").write_text(params.model_dump_json())
    encoder, away = root / "data/teacher/text_encoder", root / "away"
    for stage in (dataset, teacher, conditions):
        stage.run(params, root)
    shutil.move(encoder, away)
    trajectories.run(params, root)
    shutil.move(away, encoder)
    student.run(params, root)
    shutil.move(encoder, away)
    evaluation.run(params, root)
    shutil.move(away, encoder)
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished project: Sig-DEG with LoRA; to read, not to change."""
    return run(tmp_path_factory.mktemp("whole"), settings(method=LORA))


def metrics_of(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "data/evaluation/metrics.json").read_text())
    return found


def test_the_student_s_folder_samples_from_prompts_elsewhere(whole: Path) -> None:
    record = metrics_of(whole)["load_back"]
    assert record["ok"] and record["max_abs_difference"] <= 1e-4 and record["images"] == 4
    opened, made = open_student(whole / "data/student"), load_teacher(whole)
    assert opened.config.num_classes is None and opened.prompts["guidance"] == 3.0
    held = prompts_of_rows(whole, made.labels_of("validation"))
    assert opened.prompts["examples"] == held
    condition = made.default_condition(2)
    assert condition is not None
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), 500.0
    plain = untrained_form(opened, made).unet
    extra = torch.ones(2, plain.config.in_channels - 4, 8, 8)
    states = condition["encoder_hidden_states"].float()
    with torch.no_grad():
        untrained, trained = (
            each(torch.cat([x, extra], 1), t, states, return_dict=False)[0]
            for each in (plain, opened.unet)
        )
        expected = made.output(x, t, condition)
    torch.testing.assert_close(untrained, expected)
    best = json.loads((whole / "data/student/student.json").read_text())["best_step"]
    assert ((trained - expected).abs().max() > 1e-6) == (best > 0)
    card = (whole / "data/student/README.md").read_text()
    assert "pipeline_tag: text-to-image" in card and f'prompt="{held[0]}"' in card


def test_trajectories_take_prompts_in_turn(whole: Path) -> None:
    shards = open_trajectories(whole)
    train, held = (shards.array(s, "labels")[:].tolist() for s in ("train", "validation"))
    assert train == [i % TRAIN for i in range(12)]
    assert held == [TRAIN + i % HELD_OUT for i in range(16)]


def test_figures_and_report_say_that_the_teacher_is_the_reference(whole: Path) -> None:
    metrics = metrics_of(whole)
    about = metrics["evaluation"]
    # validation paths beyond the samples, none of whose prompts is missing
    assert (about["against"], about["samples"], about["real"]) == ("teacher", 6, 10)
    assert "real" not in metrics and metrics["student"]["nfe2"]["kid"] == pytest.approx(
        metrics["student"]["nfe2"]["kid"]
    )
    report = (whole / "data/evaluation/report.html").read_text()
    assert "KID to the teacher" in report and "Prompt by prompt" in report
    assert "10 of the teacher's own images" in report.replace("&#39;", "'")
    shown = json.loads((whole / "data/evaluation/prompts.json").read_text())
    held = prompts_of_rows(whole, range(TRAIN, TRAIN + HELD_OUT))
    assert shown == held * 2
    for prompt in held:
        assert f'<th scope="row">{prompt}</th>' in report
        assert f'alt="Student Sig-DEG: {prompt}"' in report
    assert len({Path(name).stem for name in (whole / "data/evaluation/grids").iterdir()}) >= 4


def test_trajectories_of_other_prompts_are_refused(whole: Path, tmp_path: Path) -> None:
    root = shutil.copytree(whole, tmp_path / "copy")
    other = settings(method=LORA, conditions={"seed": 1})
    conditions.run(other, root)
    for stage in (student, evaluation):
        with pytest.raises(InputError, match="data/trajectories was made with other prompts"):
            stage.run(other, root)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [{"method": SWD}, {"method": {"calibrate": True, "nfe": [2]}}],
    ids=["swd", "sigdeg-full-calibrated"],
)
def test_other_methods(tmp_path: Path, sections: dict[str, Any]) -> None:
    root = run(tmp_path, settings(**sections))
    metrics = metrics_of(root)
    assert metrics["load_back"]["ok"] and metrics["evaluation"]["against"] == "teacher"
    for sampler in ("student", "untrained", "teacher"):
        assert all(np.isfinite(row["kid"]) for row in metrics[sampler].values())


@pytest.mark.slow
@pytest.mark.parametrize("method", [LORA | STOCK, SWD], ids=["sigdeg", "swd"])
def test_guidance_as_an_input(tmp_path: Path, method: dict[str, Any]) -> None:
    """From the trajectories to the folder, the stock pipeline and the registry."""
    given = {"guidance_range": [1.5, 6.0], "guidance": 3.0}
    root = run(tmp_path, settings(method=method, trajectories=given))
    weights = open_trajectories(root).weights("train", range(12))
    assert weights is not None and 1.5 <= float(weights.min()) < float(weights.max()) <= 6.0
    student_folder, loaded = root / "data/student", metrics_of(root)["load_back"]
    assert loaded["ok"] and loaded["max_abs_difference"] <= 1e-4
    opened = open_student(student_folder)
    layer = opened.unet.time_embedding.cond_proj
    best = json.loads((student_folder / "student.json").read_text())["best_step"]
    assert bool(layer.weight.any()) == (best > 0)
    with torch.no_grad():  # whatever two steps have made of it
        layer.weight.normal_(std=0.3)
    images = [
        opened(
            prompt="cat up",
            guidance_scale=weight,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        )[0]
        for weight in (1.5, 6.0, None, 3.0)
    ]
    assert (images[0] - images[1]).abs().max() > 1e-3
    torch.testing.assert_close(images[2], images[3], rtol=0, atol=0)
    card = (student_folder / "README.md").read_text()
    assert "`guidance_scale`: 1.5 to 6.0, one or one for each image, 3.0 if nothing is said" in card
    assert "guidance 1.5 to 6.0, an input" in card
    opened.save_pretrained(student_folder)  # from here on with weights that matter
    model = register(root)
    prompts = pd.DataFrame({"prompt": ["cat up"]})
    served = model.predict(prompts, params={"num_images": 1, "seed": 0, "guidance_scale": 6.0})
    own = open_student(student_folder)
    for weight, same in ((6.0, True), (1.5, False)):
        generator = torch.Generator().manual_seed(0)
        made = own(prompt="cat up", guidance_scale=weight, generator=generator, output_type="np")
        assert np.allclose(served, made.images, atol=1e-6) == same
    with pytest.raises(MlflowException, match="guidance_scale 9.0: this student takes 1.5 to 6"):
        model.predict(prompts, params={"num_images": 1, "guidance_scale": 9.0})
    if method is not SWD:
        record = prove_stock(student_folder, root / "data/teacher")
        assert record["ok"], record
        assert "guidance_scale=3.0" in card
        assert "`guidance_scale`: 1.5 to 6.0, an input of the network" in card
    other = settings(method=method, trajectories=given | {"guidance_range": [1.5, 5.0]})
    with pytest.raises(InputError, match=r"was made with guidance_range = \[1.5, 6.0\]"):
        student.run(other, root)
    with pytest.raises(InputError, match=r"data/student takes guidance in \[1.5, 6\] as an input"):
        evaluation.run(settings(method=method), root)


@pytest.mark.slow
def test_larger_encoders_stay_with_the_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder names them, and proves itself by encoded examples; so does the registry."""
    monkeypatch.setattr(text_parts, "CARRIED", 1000)
    root = run(tmp_path, settings(method=LORA))
    folder = root / "data/student"
    assert metrics_of(root)["load_back"]["ok"] and not (folder / "text_encoder").exists()
    opened = open_student(folder)
    assert opened.prompts["source"] == "in/teacher"
    with pytest.raises(ValueError, match="they are those of in/teacher; load them with"):
        opened(prompt="cat up")
    opened.load_encoders(str(root / "in/teacher"))
    assert len(opened(prompt="cat up").images) == 1
    register(root)


def register(root: Path) -> Any:
    """Record and register the student; the model as the registry gives it."""
    write_lock(root, {})
    params = Params.model_validate_json((root / "params.yaml").read_text())
    tracked = tracking.track_run(root, params)
    version = registration.register_student(root, params, tracked.run_id)
    assert promotion.promote(root, params, version.number).champion
    return mlflow.pyfunc.load_model(f"models:/{version.name}@champion")


@pytest.mark.slow
def test_a_registered_version_takes_prompts(whole: Path, tmp_path: Path) -> None:
    root = shutil.copytree(whole, tmp_path / "copy")
    model = register(root)
    asked = pd.DataFrame({"prompt": ["cat up", "owl in"]})
    made = model.predict(asked, params={"num_images": 2, "seed": 5, "steps": 2})
    pipeline = open_student(root / "data/student")
    for row, prompt in enumerate(asked["prompt"]):
        generator = torch.Generator().manual_seed(5 + row)
        expected = pipeline(
            batch_size=2,
            num_inference_steps=2,
            prompt=prompt,
            generator=generator,
            output_type="np",
        )
        np.testing.assert_allclose(made[2 * row : 2 * row + 2], expected.images, atol=1e-5)
    with pytest.raises(MlflowException, match="prompt"):
        model.predict(pd.DataFrame({"request": ["x"]}))
