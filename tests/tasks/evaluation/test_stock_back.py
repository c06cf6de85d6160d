"""The proof that a student works in its teacher's own pipeline: yes for a whole form, and no, with
the reason, for every one that is not. An official LCM LoRA once lost its attention on loading for
months; here one tensor is enough.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.takeaway.lora_file import FILE, rename_for_comfyui
from tasks.evaluation.stock_back import prove_stock
from tests.models.takeaway.students import Made, make

Rename = Callable[[str], str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """To read, not to change."""
    return make(tmp_path_factory.mktemp("made"), "sd")


@pytest.fixture
def stock(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.folders[0] / "stock", tmp_path / "stock"))


def renamed(folder: Path, name: Rename) -> None:
    tensors: dict[str, Tensor] = load_file(folder / FILE)
    save_file({name(key): value for key, value in tensors.items()}, folder / FILE)


def test_a_whole_form(made: Made) -> None:
    record = prove_stock(*made.folders)
    assert record["ok"], record
    assert record["max_abs_difference"] <= 1e-4 and "reason" not in record
    assert (record["images"], record["tensors"]) == (4, len(made.adapters))


def test_one_tensor_is_not_there(made: Made, stock: Path) -> None:
    tensors = load_file(stock / FILE)
    tensors.pop(next(key for key in tensors if "to_q.lora_B" in key))
    save_file(tensors, stock / FILE)
    record = prove_stock(*made.folders, stock)
    count = len(made.adapters)
    assert record["reason"] == f"the LoRA file has {count - 1} tensors, the student {count}"
    assert not record["ok"] and record["max_abs_difference"] is None


def test_one_key_has_another_name(made: Made, stock: Path) -> None:
    """diffusers warns and goes on."""
    first = next(key for key in load_file(stock / FILE) if "attn1.to_q.lora_B" in key)
    renamed(stock, lambda key: key.replace("attn1.to_q", "attn1.to_query") if key == first else key)
    record = prove_stock(*made.folders, stock)
    assert not record["ok"] and "\n" not in record["reason"]
    assert "to_query" in record["reason"] or "tensors" in record["reason"]


@pytest.mark.slow
def test_all_attention_has_other_names(made: Made, stock: Path) -> None:
    attention = sum(".attn" in key for key in made.adapters)
    assert attention
    renamed(stock, lambda key: key.replace(".attn1.", ".attn1_.").replace(".attn2.", ".attn2_."))
    record = prove_stock(*made.folders, stock)
    assert not record["ok"]
    assert record["reason"].startswith(f"{attention} of the LoRA's {len(made.adapters)} tensors")


@pytest.mark.slow
def test_another_scheduler(made: Made, stock: Path) -> None:
    file = stock / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"by_steps": None}))
    record = prove_stock(*made.folders, stock)
    assert not record["ok"] and record["reason"].startswith("other samples, by up to")


@pytest.mark.slow
def test_comfyui_s_names(made: Made, stock: Path) -> None:
    rename_for_comfyui(stock, "unet", made.form["network"])
    record = prove_stock(*made.folders, stock)
    assert record["ok"] and record["tensors"] == len(made.adapters)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [("flux", "sigdeg"), ("sd3", "swd"), ("dit", "sigdeg"), ("ddpm", "sigdeg")],
)
def test_other_families(name: str, method: str, tmp_path: Path) -> None:
    made = make(tmp_path, name, method)
    record = prove_stock(*made.folders)
    assert record["ok"], record
