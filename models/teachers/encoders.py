"""The encoders of a text-to-image pipeline, opened without its network: what they are and how many
tokens they read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import numpy as np
import torch
from torch import nn

from models.common.errors import InputError
from models.teachers.families import FAMILIES, family_named
from models.teachers.prompts import PromptDenoiser, default_of

NETWORKS = ("unet", "transformer")
KEPT = ("tokenizer", "text_encoder", "scheduler")  # beginnings of the names of parts that open
UNBOUNDED = 10**6  # tokenizers without a limit say a huge number
PLACES = ("name_or_path", "tokenizer_file")  # of a tokenizer's files: where it was read from


def open_encoders(folder: Path) -> tuple[Any, type[PromptDenoiser]]:
    """(the pipeline of a folder without network and autoencoder, the family of its network).

    Raises InputError for a folder that is no text-to-image pipeline's.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = {name: value for name, value in index.items() if isinstance(value, list)}
    left_out = [name for name in parts if not name.startswith(KEPT)]
    diffusers.utils.logging.disable_progress_bar()
    pipe = diffusers.DiffusionPipeline.from_pretrained(
        str(folder), use_safetensors=True, local_files_only=True, **dict.fromkeys(left_out)
    )
    name = next((name for name in NETWORKS if name in parts), None)
    family = None if name is None else _family(folder / name, parts[name][1], pipe.scheduler)
    if family is None or not issubclass(family, PromptDenoiser):
        raise InputError(f"teacher {folder}: no text-to-image pipeline; expected one with encoders")
    return pipe, family


def _family(folder: Path, kind: str, scheduler: Any) -> type | None:
    """The class that a network of these files becomes: of Stable Diffusion's UNets its config
    decides. The network is built without memory for its weights.
    """
    network_class: Any = getattr(diffusers, kind, None)
    if kind not in FAMILIES or network_class is None:
        return None
    with torch.device("meta"):
        network = network_class.from_config(network_class.load_config(str(folder)))
    return type(family_named(kind).from_diffusers(network, scheduler))


def text_parts(pipe: Any) -> dict[str, Any]:
    """Tokenizers and encoders of an opened pipeline, by name."""
    names = (name for name in pipe.config if name.startswith(KEPT[:2]))
    parts = {name: getattr(pipe, name, None) for name in sorted(names)}
    return {name: part for name, part in parts.items() if part is not None}


def describe(pipe: Any) -> dict[str, dict[str, str]]:
    """The class and the sha256 (hex) of every tokenizer and encoder, by the name of the part."""
    return {
        name: {"class": type(part).__name__, "sha256": _digest(part)}
        for name, part in text_parts(pipe).items()
    }


def _digest(part: Any) -> str:
    """Of an encoder its config and weights, of a tokenizer its files; not where they lie."""
    digest = hashlib.sha256()
    if isinstance(part, nn.Module):
        config: Any = part.config
        plain = {k: v for k, v in config.to_dict().items() if not k.startswith("_")}
        plain.pop("transformers_version", None)
        digest.update(json.dumps(plain, sort_keys=True, default=str).encode())
        for name, value in sorted(part.state_dict().items()):
            array = np.ascontiguousarray(value.detach().cpu().float().numpy())
            digest.update(name.encode() + array.tobytes())
        return digest.hexdigest()
    with TemporaryDirectory(prefix="tokenizer-") as place:
        part.save_pretrained(place)
        for file in sorted(Path(place).rglob("*")):
            if not file.is_file():
                continue
            content = file.read_bytes()
            if file.name == "tokenizer_config.json":
                known = json.loads(content)
                kept = {k: v for k, v in known.items() if k not in PLACES}
                content = json.dumps(kept, sort_keys=True).encode()
            digest.update(f"{file.relative_to(place)}\0".encode() + content)
    return digest.hexdigest()


def token_limits(pipe: Any) -> dict[str, int]:
    """How many tokens of a prompt each tokenizer's encoder is given, by the part's name; CLIPs have
    a bound of their own, others the pipeline's ``max_sequence_length``.
    """
    limits = {}
    for name, part in text_parts(pipe).items():
        if not name.startswith("tokenizer"):
            continue
        longest = int(part.model_max_length)
        stated = _stated_length(pipe)
        if stated is not None and "clip" not in type(part).__name__.lower():
            longest = min(longest, stated)
        if longest < UNBOUNDED:
            limits[name] = longest
    return limits


def _stated_length(pipe: Any) -> int | None:
    try:
        return int(default_of(pipe, "max_sequence_length"))
    except (KeyError, TypeError, ValueError):
        return None


def too_long(pipe: Any, prompts: Sequence[str], limits: Mapping[str, int]) -> list[int]:
    """For every prompt, by how many tokens it is longer than what the encoders read; 0 if it
    fits."""
    over = [0] * len(prompts)
    for name, limit in limits.items():
        ids = getattr(pipe, name)(
            list(prompts), truncation=False, padding=False, verbose=False
        ).input_ids
        over = [max(known, len(row) - limit) for known, row in zip(over, ids, strict=True)]
    return over
