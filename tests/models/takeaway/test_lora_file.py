"""Names of a LoRA's tensors: those of training, of diffusers, of ComfyUI."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.common.errors import InputError
from models.takeaway.lora_file import FILE, adapter_tensors, kohya_names, rename_for_comfyui
from tests.models.takeaway.students import make
from tests.models.teachers import pipelines


def test_adapters_of_a_training_network() -> None:
    weights = {
        "a.b.lora_A.student.weight": torch.ones(2, 3),
        "a.b.lora_B.student.weight": torch.zeros(4, 2),
        "a.b.base_layer.weight": torch.zeros(4, 3),
        "lora.weight": torch.zeros(1),
    }
    found = adapter_tensors(weights)
    assert set(found) == {"a.b.lora_A.weight", "a.b.lora_B.weight"}
    weights["a.b.lora_A.student.weight"].zero_()
    assert found["a.b.lora_A.weight"].sum() == 6  # a copy


def test_kohya_names() -> None:
    up, down = torch.zeros(4, 2), torch.ones(2, 3)
    found = kohya_names(
        {"unet.a.b_c.0.lora_A.weight": down, "unet.a.b_c.0.lora_B.weight": up}, "unet"
    )
    assert {k: tuple(v.shape) for k, v in found.items()} == {
        "lora_unet_a_b_c_0.lora_down.weight": (2, 3),
        "lora_unet_a_b_c_0.lora_up.weight": (4, 2),
        "lora_unet_a_b_c_0.alpha": (),
    }
    assert float(found["lora_unet_a_b_c_0.alpha"]) == 2


@pytest.mark.parametrize("name", ["sd", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_diffusers_reads_comfyui_s_names_back(tmp_path: Path, name: str) -> None:
    made = make(tmp_path, name)
    folder = tmp_path / "student/stock"
    rename_for_comfyui(folder, "unet", made.form["network"])
    names = load_file(folder / FILE)
    assert all(k.startswith("lora_unet_") and k.count(".") in (1, 2) for k in names)
    pipe, _ = pipelines.build(name)
    pipe.load_lora_weights(folder)
    back = adapter_tensors(pipe.unet.state_dict())
    assert back.keys() == made.adapters.keys()
    for key, value in made.adapters.items():
        torch.testing.assert_close(back[key], value, rtol=0, atol=0)


def test_other_networks(tmp_path: Path) -> None:
    rename_for_comfyui(tmp_path, "transformer", "SD3Transformer2DModel")  # as it is: not even read
    with pytest.raises(InputError, match="no names of ComfyUI are known for a SanaTransformer2D"):
        rename_for_comfyui(tmp_path, "transformer", "SanaTransformer2DModel")
