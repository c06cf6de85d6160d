"""The adapters of a student as a LoRA file: under the names that diffusers' pipelines take, or
under those that ComfyUI reads.

Names of a layer ``a.b`` of the pipeline's part ``unet``:

    peft, in a training network    a.b.lora_A.NAME.weight
    diffusers, in a file           unet.a.b.lora_A.weight
    kohya, which ComfyUI reads     lora_unet_a_b.lora_down.weight, .lora_up.weight, .alpha

A is the first factor (down), B the second (up); the layer gets W + alpha / rank B A (Hu et al.
2022, arXiv 2106.09685). Students have alpha = rank, which is what a file without alpha means.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.common.errors import InputError

FILE = "pytorch_lora_weights.safetensors"
KEYS = ("diffusers", "comfyui")
ADAPTER = re.compile(r"(.+\.lora_[AB])\.\w+\.weight")
KOHYA = ("UNet2DConditionModel",)  # ComfyUI knows their layers by diffusers' names with underscores
AS_THEY_ARE = ("SD3Transformer2DModel", "FluxTransformer2DModel")  # and of these diffusers' own


def adapter_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapters among a training network's ``weights`` (a state dict), by ``a.b.lora_A.weight``:
    copies, contiguous, on the CPU. Empty where there are none.
    """
    found = {}
    for name, value in weights.items():
        if match := ADAPTER.fullmatch(name):
            plain = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            found[f"{match[1]}.weight"] = plain
    return found


def save_lora(tensors: Mapping[str, Tensor], part: str, folder: Path) -> None:
    """Write ``folder``/pytorch_lora_weights.safetensors, which ``pipe.load_lora_weights(folder)``
    takes. ``tensors``: of :func:`adapter_tensors`; ``part``: unet or transformer.
    """
    _write({f"{part}.{name}": value for name, value in tensors.items()}, folder)


def rename_for_comfyui(folder: Path, part: str, network: str) -> None:
    """Give the tensors of the LoRA file in ``folder`` the names that ComfyUI reads.

    ``network``: the class of the part. The file of a transformer of SD3 or FLUX stays as it is.
    InputError for networks whose layers ComfyUI does not know.
    """
    if network in AS_THEY_ARE:
        return
    if network not in KOHYA:
        known = ", ".join((*KOHYA, *AS_THEY_ARE))
        raise InputError(
            f"keys comfyui: no names of ComfyUI are known for a {network}; expected one of "
            f"{known}, or keys diffusers"
        )
    _write(kohya_names(load_file(folder / FILE), part), folder)


def kohya_names(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of a LoRA file by kohya's names, with alpha = rank."""
    named: dict[str, Tensor] = {}
    for name, value in tensors.items():
        layer, _, factor = name.removesuffix(".weight").removeprefix(f"{part}.").rpartition(".")
        plain = f"lora_{part}_{layer.replace('.', '_')}"
        if factor == "lora_A":
            named[f"{plain}.lora_down.weight"] = value
            named[f"{plain}.alpha"] = torch.tensor(float(len(value)))
        else:
            named[f"{plain}.lora_up.weight"] = value
    return named


def _write(tensors: dict[str, Tensor], folder: Path) -> None:
    ordered = dict(sorted(tensors.items()))
    save_file(ordered, folder / FILE, metadata={"format": "pt"})
    (folder / FILE).chmod(0o644)  # safetensors writes 0600, unreadable for other users
