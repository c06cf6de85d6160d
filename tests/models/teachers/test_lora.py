"""A LoRA fused into a teacher first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from models.common.errors import InputError
from models.teachers.loading import denoiser_of_pipeline
from models.teachers.lora import fuse_lora
from tests.models.teachers.pipelines import build
from tests.models.teachers.texts import PIXELS, PROMPTS

PART = {"sd": "unet", "sdxl": "unet", "sd3": "transformer", "flux": "transformer"}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
FILE = "pytorch_lora_weights.safetensors"


def adapted(name: str, encoder: bool = False) -> tuple[Any, dict[str, Any]]:
    """A pipeline with a random adapter in its network, and what saves it."""
    pipe = build(name)[0]
    saved: dict[str, Any] = {}
    parts = [PART[name], *(["text_encoder"] if encoder else [])]
    for part in parts:
        network: Any = getattr(pipe, part)
        targets = ["q_proj", "v_proj"] if part == "text_encoder" else TARGETS
        config = LoraConfig(r=2, lora_alpha=2, target_modules=targets)
        network.add_adapter(config)
        with torch.no_grad():
            for key, weight in network.named_parameters():
                if "lora_" in key:
                    weight.normal_(std=0.2)
        saved[f"{part}_lora_layers"] = get_peft_model_state_dict(network)
    return pipe, saved


def answer(pipe: Any, name: str) -> torch.Tensor:
    teacher: Any = denoiser_of_pipeline(pipe, name, size=PIXELS)
    x = torch.randn((2, *teacher.shape), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return teacher.output(x, 500.0, teacher.encode_prompts(pipe, PROMPTS))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", PART)
def test_the_teacher_answers_as_the_network_with_its_adapter(name: str, tmp_path: Path) -> None:
    """The text encoder's adapter too; afterwards no adapter is left."""
    trained, layers = adapted(name, encoder=name == "sd")
    type(trained).save_lora_weights(tmp_path, **layers)
    expected = answer(trained, name)
    pipe = build(name)[0]
    plain = answer(pipe, name)
    fuse_lora(pipe, tmp_path)
    torch.testing.assert_close(answer(pipe, name), expected, rtol=1e-4, atol=1e-4)
    assert (plain - expected).abs().max() > 1e-2
    assert not any("lora" in key for key in getattr(pipe, PART[name]).state_dict())


def test_names_of_kohyas_scripts_with_their_alpha(tmp_path: Path) -> None:
    """Rank 2 and alpha 1 is half of what rank 2 and alpha 2 is."""
    trained, layers = adapted("sd")
    type(trained).save_lora_weights(tmp_path / "peft", **layers)
    renamed = {}
    for key, weight in layers["unet_lora_layers"].items():
        layer, half = key.removesuffix(".weight").rsplit(".", 1)
        name = f"lora_unet_{layer.replace('.', '_')}"
        renamed[f"{name}.{'lora_down' if half == 'lora_A' else 'lora_up'}.weight"] = weight
        renamed[f"{name}.alpha"] = torch.tensor(1.0)
    save_file(renamed, tmp_path / "kohya.safetensors")
    first, second = build("sd")[0], build("sd")[0]
    fuse_lora(first, tmp_path / "kohya.safetensors")
    fuse_lora(second, tmp_path / "peft", scale=0.5)
    for key, weight in second.unet.state_dict().items():
        torch.testing.assert_close(first.unet.state_dict()[key], weight, rtol=1e-4, atol=1e-5)


def test_half_of_a_lora_lies_between(tmp_path: Path) -> None:
    trained, layers = adapted("sd")
    type(trained).save_lora_weights(tmp_path, **layers)
    pipe, whole = build("sd")[0], build("sd")[0]
    fuse_lora(pipe, tmp_path / FILE, scale=0.5)
    fuse_lora(whole, tmp_path / FILE)
    key = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    half, one, none = (p.unet.state_dict()[key] for p in (pipe, whole, build("sd")[0]))
    torch.testing.assert_close(half, 0.5 * (one + none), rtol=1e-4, atol=1e-5)


def test_a_layer_without_a_place_is_not_dropped_silently(tmp_path: Path) -> None:
    trained, layers = adapted("sd")
    type(trained).save_lora_weights(tmp_path, **layers)
    weights = load_file(tmp_path / FILE)
    count = sum("lora_A" in key for key in weights)
    for half, shape in (("A", (2, 8)), ("B", (8, 2))):
        weights[f"unet.mid_block.attentions.7.to_q.lora_{half}.weight"] = torch.ones(shape)
    save_file(weights, tmp_path / FILE)
    pipe = build("sd")[0]
    before = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    with pytest.raises(InputError, match=f"{count} of its {count + 1} layers have a place"):
        fuse_lora(pipe, tmp_path)
    after = pipe.unet.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)


def test_what_is_no_lora(tmp_path: Path) -> None:
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    (tmp_path / "b.bin").write_bytes(b"")
    pipe = build("sd")[0]
    for path, words in {
        "a.safetensors": "no LoRA that StableDiffusionPipeline takes",
        "b.bin": "no .safetensors file; expected one",
        "c.safetensors": "no .safetensors file; expected one",
    }.items():
        with pytest.raises(InputError, match=words) as caught:
            fuse_lora(pipe, tmp_path / path)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="a DDPMPipeline takes no LoRA"):
        fuse_lora(build("ddpm")[0], tmp_path / "a.safetensors")
