"""Text-to-image teachers: folders, files, LoRAs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from models.teachers.loading import load_denoiser
from tasks.config.schema import Params
from tasks.data.trajectories import open_trajectories
from tasks.stages import conditions, dataset, teacher, trajectories
from tests.inputs.rows import Row
from tests.models.teachers.original_format import original
from tests.models.teachers.pipelines import build
from tests.tasks.prompts import settings, write_inputs

TITLE = "Text-to-image teachers (`teacher.source: pretrained`)"


def given(make: Callable[[Path], object], **section: Any) -> Callable[[Path], None]:
    """The teacher stage on what ``make`` puts into a folder."""

    def run(root: Path) -> None:
        make(root)
        # later stages do not need the encoders
        stated = {"source": "pretrained", "path": "in", **section}
        teacher.run(Params.model_validate_json(json.dumps({"teacher": stated})), root)
        loaded = load_denoiser(root / "data" / "teacher")
        assert loaded.condition_kind == "prompts"
        assert loaded.network.dtype == getattr(torch, section.get("dtype", "float32"))
        assert loaded.shape[1] == section.get("size", 16) // 2

    return run


def folder(name: str = "sd", **options: Any) -> Callable[[Path], object]:
    return lambda root: build(name)[0].save_pretrained(root / "in", **options)


def changed(part: str, **config: Any) -> Callable[[Path], object]:
    """A folder with other values in the config of a part, or of the pipeline for none."""

    def make(root: Path) -> None:
        folder()(root)
        file = root / "in" / (f"{part}/config.json" if part else "model_index.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | config))

    return make


def rebuilt(root: Path, **config: Any) -> None:
    """A folder whose UNet is made with other values in its config, weights included."""
    changed("unet", **config)(root)
    place = root / "in/unet"
    options = UNet2DConditionModel.load_config(place)
    UNet2DConditionModel.from_config(options).save_pretrained(place)


def one_file(root: Path) -> None:
    """A fine-tune as it is passed on, and the folder of what it was trained from."""
    folder()(root)
    save_file(original(build("sd")[0]), root / "in.safetensors")


def lora(root: Path, lost: bool = False) -> None:
    """A folder, and a LoRA for it; ``lost``: with a layer that has no place."""
    pipe = build("sd")[0]
    pipe.save_pretrained(root / "in")
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    layers = get_peft_model_state_dict(pipe.unet)
    pipe.save_lora_weights(root, unet_lora_layers=layers, weight_name="lora.safetensors")
    if lost:
        weights = load_file(root / "lora.safetensors")
        for half, shape in (("A", (2, 8)), ("B", (8, 2))):
            weights[f"unet.mid_block.attentions.7.to_q.lora_{half}.weight"] = torch.ones(shape)
        save_file(weights, root / "lora.safetensors")


def ranged(name: str) -> Callable[[Path], None]:
    """The first two stages that know the teacher, with a range of guidance."""

    def run(root: Path) -> None:
        params = settings(trajectories={"guidance_range": [2.0, 8.0], "train": 4, "validation": 12})
        write_inputs(root, name)
        for stage in (dataset, teacher, conditions, trajectories):
            stage.run(params, root)
        weights = open_trajectories(root).weights("train", range(4))
        assert weights is not None and len(weights.unique()) == 4

    return run


def empty(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(b"")


ROWS = (
    Row(
        "text-folder",
        "a folder or hub id of Stable Diffusion 1.x, 2.x, XL, 3.x, FLUX.1, PixArt, Sana",
        given(folder()),
        taken="network, scheduler and autoencoder; encoders are used once, for the prompts",
    ),
    Row(
        "text-size",
        "`teacher.size: 48`, in pixels",
        given(folder(), size=48),
        taken="the size of all images; else the network's own",
    ),
    Row(
        "text-size-wrong",
        "`teacher.size: 50`, which the network cannot halve",
        given(folder(), size=50),
        refused="teacher.size = 50: expected a multiple of 4, 2 for the autoencoder and 2 for its "
        "UNet2DConditionModel",
    ),
    Row(
        "text-variant",
        "weights of a variant alone, with `teacher.variant: fp16`",
        given(folder(variant="fp16"), variant="fp16"),
        taken="as float32",
    ),
    Row(
        "text-dtype",
        "`teacher.dtype: bfloat16`",
        given(folder(), dtype="bfloat16"),
        taken="the network's weights are bfloat16, here and in later stages; students are float32",
    ),
    Row(
        "text-file",
        "a `.safetensors` file of a fine-tune, with `teacher.config` naming the folder of what it "
        "was trained from",
        given(one_file, path="in.safetensors", config="in"),
        taken="network, autoencoder and text encoder of the file",
    ),
    Row(
        "text-file-alone",
        "such a file alone",
        given(one_file, path="in.safetensors"),
        refused="teacher in.safetensors: one file does not say its scheduler and tokenizers; set "
        "teacher.config to a diffusers pipeline folder of the same kind of model, such as the one it "
        "was trained from (weights are not needed there)",
    ),
    Row(
        "text-ckpt",
        "a `.ckpt` file",
        given(empty("in.ckpt"), path="in.ckpt"),
        refused="teacher in.ckpt: pickled weights, which can run code; expected .safetensors",
    ),
    Row(
        "text-lora",
        "`teacher.lora`, of diffusers or kohya's scripts",
        given(lora, lora="lora.safetensors"),
        taken="added to the weights, `teacher.lora_scale` times",
    ),
    Row(
        "text-lora-lost",
        "a LoRA with a layer that the network lacks",
        given(lambda root: lora(root, lost=True), lora="lora.safetensors"),
        refused="teacher.lora = lora.safetensors: 8 of its 9 layers have a place in this "
        "StableDiffusionPipeline; expected all: a LoRA trained for another network, or in another "
        "format",
    ),
    Row(
        "text-lora-path",
        "a LoRA as `teacher.path`",
        given(lora, path="lora.safetensors", config="in"),
        refused="teacher lora.safetensors: a LoRA, not a model; set teacher.path to the model that it "
        "was trained on and teacher.lora to this file",
    ),
    Row(
        "text-distilled",
        "a UNet that is told its guidance (LCM)",
        given(lambda root: rebuilt(root, time_cond_proj_dim=32)),
        refused="teacher's UNet2DConditionModel: time_cond_proj_dim = 32; expected null: its further "
        "inputs are not supported",
    ),
    Row(
        "text-weights",
        "Stable Diffusion 1.x, 2.x, XL or FLUX.1 dev with `trajectories.guidance_range: [2, 8]`",
        ranged("sd"),
        taken="guidance is an input of the student",
    ),
    Row(
        "text-weights-none",
        "another teacher with that",
        ranged("sd3"),
        refused="trajectories.guidance_range = [2, 8]: students of a SD3Transformer2DModel have no "
        "input for the weight of guidance; expected a teacher with a UNet2DConditionModel (Stable "
        "Diffusion 1.x, 2.x, XL), or a FluxTransformer2DModel with guidance_embeds; use null, and "
        "one trajectories.guidance",
    ),
)
