"""The teacher stage: training that survives a kill, classes with guidance, and pretrained
folders.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from models.common.errors import InputError
from models.teachers.base import Denoiser
from models.teachers.conditioning import class_condition
from tasks.config.schema import Params
from tasks.config.trajectories import Trajectories
from tasks.data.teacher import load_teacher
from tasks.data.trajectories import open_trajectories
from tasks.stages import dataset, teacher, trajectories
from tasks.training.checkpoints import latest_checkpoint, unflatten
from tasks.training.trainer import Training
from tests.models.training.test_loop import equal
from tests.tiny import save_teacher, tiny_unet, weights

TINY = {
    "source": "train", "steps": 6, "batch_size": 8, "learning_rate": 1e-3, "warmup": 2, "ema": 0.9,
    "channels": [8, 16], "layers_per_block": 1, "scales": [4, 8], "checkpoint_every": 2, "dropout": 0.1,
}  # fmt: skip


def settings(**changes: Any) -> Params:
    data = {"kind": "digits", "size": 8, "holdout": 100}
    section = changes if "source" in changes else TINY | changes
    plain = Params.model_validate({"dataset": data, "teacher": section})
    small = Trajectories.model_validate(
        {"train": 6, "validation": 3, "steps": 6, "intervals": 3, "lane": 4}
    )
    return plain.model_copy(update={"trajectories": small})


def train(root: Path, **changes: Any) -> Denoiser:
    params = settings(**changes)
    if not (root / "data" / "dataset").exists():
        dataset.run(params, root)
    teacher.run(params, root)
    return load_teacher(root)


def record(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "data" / "teacher" / "teacher.json").read_text())
    return found


def test_training_from_digits_survives_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after four of six steps and run again: the weights of an uninterrupted run, bit for
    bit.
    """
    whole = train(tmp_path / "whole")
    real = Training._after

    def dies(self: Training, report: Any, advance: Any) -> None:
        real(self, report, advance)
        if report.step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_after", dies)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut")
    assert not (tmp_path / "cut" / "data" / "teacher").exists()
    resumed_at: list[int] = []
    resume = Training.resume
    monkeypatch.setattr(Training, "resume", lambda self: resumed_at.append(resume(self)))
    torch.manual_seed(77)
    again = train(tmp_path / "cut")
    assert resumed_at == [4]
    assert equal(weights(again.network), weights(whole.network))
    assert again.fingerprint() == whole.fingerprint() == record(tmp_path / "cut")["fingerprint"]


def test_what_a_trained_teacher_leaves(tmp_path: Path) -> None:
    found = train(tmp_path)
    notes = record(tmp_path)
    assert (notes["source"], notes["shape"], notes["prediction_type"]) == (
        "train",
        [1, 8, 8],
        "v_prediction",
    )
    assert (
        notes["null_class"] is None and notes["params"]["steps"] == 6 and notes["last"]["step"] == 6
    )
    assert (found.shape, found.num_classes, found.clip) == ((1, 8, 8), None, None)
    pipe = DDPMPipeline.from_pretrained(tmp_path / "data" / "teacher", use_safetensors=True)
    assert pipe(batch_size=2, num_inference_steps=3, output_type="np").images.shape == (2, 8, 8, 1)
    (scratch,) = (
        path for path in (tmp_path / ".fewstep" / "scratch" / "teacher").iterdir() if path.is_dir()
    )
    checkpoint = latest_checkpoint(scratch)
    assert checkpoint is not None and checkpoint.step == 6
    saved = unflatten(*checkpoint.load())["train"]
    assert equal(
        weights(found.network), saved["ema_weights"]["teacher"]
    )  # the EMA, not the last weights
    assert not equal(weights(found.network), saved["networks"]["teacher"])
    moved = train(tmp_path, learning_rate=2e-3)
    assert moved.fingerprint() != found.fingerprint()


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "flow"])
def test_other_predictions_and_schedules(tmp_path: Path, prediction: str) -> None:
    found = train(tmp_path, steps=2, prediction_type=prediction, schedule="linear")
    assert found.prediction_type == prediction == record(tmp_path)["prediction_type"]
    kind = FlowMatchEulerDiscreteScheduler if prediction == "flow" else DDPMScheduler
    assert type(found.scheduler) is kind
    trajectories.run(settings(), tmp_path)
    assert open_trajectories(tmp_path).array("train", "Y").shape == (6, 4, 1, 8, 8)


def test_training_starts_from_a_folder(tmp_path: Path) -> None:
    """With a rate of nearly nothing the weights are the folder's; another network is refused."""
    first = train(tmp_path / "first")
    source = str(tmp_path / "first" / "data" / "teacher")
    again = train(tmp_path / "again", path=source, steps=1, learning_rate=1e-12, warmup=0)
    for name, value in first.network.state_dict().items():
        assert torch.allclose(again.network.state_dict()[name], value, atol=1e-9), name
    random = train(tmp_path / "random", steps=1, learning_rate=1e-12, warmup=0)
    assert not equal(random.network.state_dict(), first.network.state_dict())
    with pytest.raises(InputError, match=r"teacher.path = .*expected the same channels"):
        train(tmp_path / "wide", path=source, channels=[16, 16])


def test_classes_with_guidance_end_to_end(tmp_path: Path) -> None:
    """Ten digits and a null class in training; generation with guidance; the label is used."""
    found = train(tmp_path, conditional=True)
    assert (found.num_classes, found.null_class) == (10, 10) and record(tmp_path)[
        "null_class"
    ] == 10
    params = settings(conditional=True)
    guided = params.trajectories.model_copy(update={"guidance": 2.0, "classes": (3, 7)})
    trajectories.run(params.model_copy(update={"trajectories": guided}), tmp_path)
    shards = open_trajectories(tmp_path)
    assert shards.array("train", "labels")[:].tolist() == [3, 7] * 3
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        three, seven = (
            found.denoise(x, 500, class_condition(torch.tensor([label] * 2)), guidance=2.0)
            for label in (3, 7)
        )
    assert (three - seven).abs().max() > 1e-4


def test_pretrained_is_copied_with_its_null_class(tmp_path: Path) -> None:
    source = save_teacher(tmp_path / "source", classes=3, seed=4)
    relative = Path("source") / "data" / "teacher"
    teacher.run(settings(source="pretrained", path=str(relative)), tmp_path)
    copy = load_teacher(tmp_path)
    notes = record(tmp_path)
    assert (copy.num_classes, copy.null_class, notes["null_class"]) == (3, 3, 3)
    assert copy.fingerprint() == source.fingerprint() == notes["fingerprint"]
    assert equal(weights(copy.network), weights(source.network))
    assert notes["source"] == str(relative) and notes["prediction_type"] == "v_prediction"


def test_pretrained_errors_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        teacher.run(settings(source="pretrained", path="data/nowhere/at/all"), tmp_path)
    assert not (tmp_path / "data").exists()


def test_classes_need_labels(tmp_path: Path) -> None:
    save = tmp_path / "unlabelled"
    save = tmp_path / "unlabelled"
    save.mkdir()
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8), np.uint8)
    np.savez(save / "images.npz", images=images)
    data = {"kind": "npz", "path": str(save / "images.npz"), "size": 8, "holdout": 10}
    params = Params.model_validate({"dataset": data, "teacher": TINY | {"conditional": True}})
    dataset.run(params, save)
    with pytest.raises(InputError, match="conditional = true: 30 of 30 images have no label"):
        teacher.run(params, save)


def test_training_needs_the_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"python -m tasks\.stages\.dataset"):
        teacher.run(settings(), tmp_path)


def test_a_custom_pipeline_keeps_its_autoencoder(tmp_path: Path) -> None:
    """Its code is run once, when trusted; what is saved is a stock pipeline with all its parts."""
    source = tmp_path / "custom"
    source.mkdir()
    (source / "mine.py").write_text(
        "from diffusers import DiffusionPipeline\n"
        "class Mine(DiffusionPipeline):\n"
        "    def __init__(self, unet, vae, scheduler):\n"
        "        super().__init__()\n"
        "        self.register_modules(unet=unet, vae=vae, scheduler=scheduler)\n"
        "    def __call__(self, **options):\n"
        "        raise NotImplementedError\n"
    )
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    vae = AutoencoderKL(block_out_channels=(8, 8), latent_channels=1, norm_num_groups=4, **blocks)
    tiny_unet().save_pretrained(source / "unet")
    vae.save_pretrained(source / "vae")
    DDPMScheduler(clip_sample=False).save_pretrained(source / "scheduler")
    index = {
        "_class_name": ["mine", "Mine"], "_diffusers_version": "0.30.0",
        "unet": ["diffusers", "UNet2DModel"], "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }  # fmt: skip
    (source / "model_index.json").write_text(json.dumps(index))
    params = settings(source="pretrained", path=str(source), trust_remote_code=True)
    teacher.run(params, tmp_path)
    found = load_teacher(tmp_path)
    x0 = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        expected = vae.decode(x0 / vae.config.scaling_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(found.decode(x0), expected)


def test_null_class_is_a_parameter(tmp_path: Path) -> None:
    """Class 0 means "none", as in several tutorials: the real ones are numbered without it."""
    network = tiny_unet(classes=3)
    scheduler = DDPMScheduler(clip_sample=False)
    DDPMPipeline(unet=network, scheduler=scheduler).save_pretrained(tmp_path / "mine")
    given = {"source": "pretrained", "path": str(tmp_path / "mine")}
    teacher.run(settings(**given, null_class=0), tmp_path)
    found, x = load_teacher(tmp_path), torch.randn(3, 1, 8, 8)
    assert (found.num_classes, found.null_class, record(tmp_path)["null_class"]) == (3, 3, 3)
    with torch.no_grad():
        expected = network(x, 9, class_labels=torch.tensor([1, 2, 3])).sample
        torch.testing.assert_close(
            found.predict(x, 9.0, class_condition(torch.arange(3))), expected
        )
    with pytest.raises(InputError, match="null_class = 4: expected 0 to 3"):
        teacher.run(settings(**given, null_class=4), tmp_path)
