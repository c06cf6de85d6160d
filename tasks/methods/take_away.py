"""A student's form for its teacher's own pipeline of diffusers, in data/student/stock: a LoRA or
the network, a scheduler and stock.json; and a folder of its own for it with a card, to take away.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from models.common.errors import InputError
from models.takeaway.form import stock_form, write_form
from models.takeaway.lora_file import KEYS, adapter_tensors, rename_for_comfyui
from models.teachers.loading import read_record
from tasks.methods.model_card import name_of, render
from tasks.utils.atomic import atomic_dir, atomic_write_json

STOCK, FORM = "stock", "stock.json"


def form_of(student: Any, weights: Mapping[str, Tensor], root: Path) -> dict[str, Any]:
    """What student.json says of the stock pipeline: the form of models/takeaway/form.py with the
    ``base`` it belongs to, or a ``reason`` why there is none. ``weights``: the trained state dict.
    """
    index = root / "data" / "teacher" / "model_index.json"
    if not index.is_file():
        return {"reason": "its teacher is not a pipeline of diffusers"}
    pipeline = json.loads(index.read_text(encoding="utf-8"))
    try:
        form = stock_form(student, pipeline, adapter_tensors(weights))
    except InputError as error:
        return {"reason": str(error)}
    return form | {"base": _base(root)}


def write_stock(form: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write ``folder``/stock where the student has a stock form."""
    if "reason" in form:
        return
    stock = folder / STOCK
    stock.mkdir()
    write_form(form, adapter_tensors(weights), stock)
    atomic_write_json(stock / FORM, dict(form))


def take_away(root: Path, target: Path, keys: str = "diffusers") -> dict[str, int]:
    """Write the stock form of data/student into the folder ``target``, whole or not at all, its
    card filled with the figures of data/evaluation; returns the sizes of its files in bytes.

    ``keys``: names of the LoRA's tensors, "diffusers" or "comfyui". InputError where the student
    has no stock form or no LoRA to rename, or ``target`` exists.
    """
    if keys not in KEYS:
        raise InputError(f"keys {keys!r}: expected {' or '.join(KEYS)}")
    source = root / "data" / "student"
    if not (source / "student.json").is_file():
        raise InputError(f"{source}: no student; run python -m tasks.stages.student first")
    record = json.loads((source / "student.json").read_text(encoding="utf-8"))
    form = record.get("stock", {"reason": "it was made before there were any"})
    if "reason" in form:
        raise InputError(f"data/student has no form for a stock pipeline: {form['reason']}")
    if target.exists():
        raise InputError(f"{target}: exists; expected a folder to be made")
    if keys != "diffusers" and form["weights"] != "lora":
        raise InputError(f"keys {keys}: data/student has no LoRA; use diffusers")
    measured = root / "data" / "evaluation" / "metrics.json"
    metrics = json.loads(measured.read_text(encoding="utf-8")) if measured.is_file() else None
    with atomic_dir(target) as folder:
        shutil.copytree(source / STOCK, folder, dirs_exist_ok=True)
        if form["weights"] == "network":
            shutil.copytree(source / "unet", folder / form["part"])
        if keys == "comfyui":
            rename_for_comfyui(folder, form["part"], form["network"])
        told = record | {"stock": form | {"keys": keys}}
        atomic_write_json(folder / FORM, dict(told["stock"]))
        card = render(told, metrics, repo=target.name, taken=True)
        (folder / "README.md").write_text(card, encoding="utf-8")
    files = (path for path in target.rglob("*") if path.is_file())
    return {path.relative_to(target).as_posix(): path.stat().st_size for path in files}


def _base(root: Path) -> dict[str, Any]:
    """The teacher as it is to be opened elsewhere; no path of this machine beside names."""
    known = read_record(root / "data" / "teacher")
    source = known.get("source", "")
    if source in ("train", "factory"):
        return {"source": "path/of/the/teacher"}
    base: dict[str, Any] = {"source": name_of(str(source))}
    if known.get("revision") is not None:
        base["revision"] = known["revision"]
    if known.get("lora") is not None:
        base |= {"lora": name_of(str(known["lora"])), "lora_scale": known["lora_scale"]}
    return base
