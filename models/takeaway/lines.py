"""The lines of Python that sample a student in a stock pipeline, as its card shows them. The proof
that a student works elsewhere runs the same lines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.takeaway.lora_file import FILE

DYNAMIC = "from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module"


@dataclass(frozen=True)
class Place:
    """Where a form for a stock pipeline lies: in the folder or hub repository ``repo``, there in
    ``inside``; ``network``: the folder in ``repo`` of the network, where that goes along.
    """

    repo: str
    inside: str = ""
    network: str = "unet"

    def path(self, name: str) -> str:
        """Of a part, within ``repo``."""
        return f"{self.inside}/{name}" if self.inside else name


def opening_lines(form: Mapping[str, Any], base: Mapping[str, Any], place: Place) -> str:
    """What makes ``pipe``. ``base``: the teacher's ``source`` (a folder, a hub id, or one file),
    ``revision``, and ``lora`` with its ``lora_scale`` where one was fused into it.
    """
    names, repo = [form["pipeline"]], _quoted(place.repo)
    lines: list[str] = []
    given = ""
    if form["weights"] == "network":
        names.append(form["network"])
        opened = f"from_pretrained({repo}, subfolder={_quoted(place.network)})"
        lines.append(f"network = {form['network']}.{opened}")
        given = f", {form['part']}=network"
    lines += _base_lines(form, base, given)
    if form["weights"] == "lora":
        file = f", weight_name={_quoted(place.path(FILE))}" if place.inside else ""
        lines.append(f"pipe.load_lora_weights({repo}{file})")
    scheduler, sub = form["scheduler"], f"subfolder={_quoted(place.path('scheduler'))}"
    if scheduler == "SigDEGScheduler":
        lines.append(
            f'{scheduler} = get_class_from_dynamic_module(\n    {repo}, "sigdeg_scheduler.py", '
            f'{sub},\n    class_name="{scheduler}", trust_remote_code=True,\n)'
        )
    else:
        names.append(scheduler)
    lines.append(f"pipe.scheduler = {scheduler}.from_pretrained({repo}, {sub})")
    head = ["import torch", f"from diffusers import {', '.join(sorted(names))}"]
    return "\n".join([*head, *([DYNAMIC] if scheduler not in names else []), *lines])


def _base_lines(form: Mapping[str, Any], base: Mapping[str, Any], given: str) -> list[str]:
    source, revision = str(base["source"]), base.get("revision")
    if source.endswith(".safetensors"):
        opened = f"{form['pipeline']}.from_single_file({_quoted(source)}"
    else:
        asked = "" if revision is None else f", revision={_quoted(revision)}"
        opened = f"{form['pipeline']}.from_pretrained({_quoted(source)}{asked}"
    lines = [f"pipe = {opened}, dtype=torch.float32{given})"]
    if base.get("lora") is not None:
        lines.append(f"pipe.load_lora_weights({_quoted(base['lora'])})")
        lines.append(f"pipe.fuse_lora(lora_scale={base.get('lora_scale', 1.0)!r})")
        lines.append("pipe.unload_lora_weights()")
    return lines


def call_line(form: Mapping[str, Any], what: Any) -> str:
    """The call; ``what``: a prompt, classes or a number of images, as ``form["takes"]`` says."""
    given = ", ".join(f"{name}={_quoted(value)}" for name, value in form["call"].items())
    return f"images = pipe({form['takes']}={_quoted(what)}, {given}).images"


def _quoted(value: Any) -> str:
    """A value as Python, texts in double quotes: others have named them, so that what could end the
    card's block of code, or not be seen, is written by its number.
    """
    if not isinstance(value, str):
        return repr(value)
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() and c not in "<>&`" else _by_number(c) for c in text)


def _by_number(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
