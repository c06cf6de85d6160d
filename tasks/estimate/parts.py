"""What a teacher is made of, as configurations without weights: of a folder, of a hub id that
conf/architecture knows, or of a folder that the hub gives the configurations of.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from models.common.errors import InputError
from tasks.config.presets import CONF
from tasks.config.schema import Params
from tasks.config.teacher import PretrainedTeacher

ARCHITECTURES = "architecture"
CLIP_TOKENS = 77
ENCODERS = "text_encoder"  # beginning of their names
SINGLE_FILE = ".safetensors"
LARGE = 600e6  # bytes of a network's weights; 300 million in half precision
PLAIN = ("unet", "transformer", "vae", "vqvae", "scheduler")


@dataclass(frozen=True)
class Parts:
    """Class and configuration of every part that has weights, and of the scheduler, by name.

    ``told``: where they are from, for the reader; ``folder``: with the weights, if they are here;
    ``clip_tokens``: what CLIP's tokenizer pads to; ``pipeline``: the class of the whole.
    """

    told: str
    pipeline: str
    configs: dict[str, tuple[str, dict[str, Any]]]
    folder: Path | None = None
    clip_tokens: int = CLIP_TOKENS


def find_parts(path: str, config: str | None, root: Path) -> Parts:
    """The parts of `teacher.path`; of a checkpoint in one file those of ``config``, a folder.

    Raises InputError for a path that is neither here nor a known hub id.
    """
    source = config if config is not None and path.endswith(SINGLE_FILE) else path
    folder = root / source
    if folder.is_dir():
        return folder_parts(folder, path)
    known = known_architectures(root)
    if source in known:
        return _described(known[source])
    ids = ", ".join(sorted(known))
    raise InputError(
        f"teacher.path = {path}: not here, and its shape is not known; expected a pipeline folder, "
        f"or one of {ids}; of a fine-tune give the folder, whose config.json files are enough"
    )


def is_large(params: Params, root: Path) -> bool:
    """Whether the job is one of a large pretrained teacher, by the size of its files or by its hub
    id. A quick look: no configuration is read.
    """
    source = params.teacher
    if not isinstance(source, PretrainedTeacher):
        return False
    place = root / source.path
    if place.is_file():
        return place.stat().st_size > LARGE
    if place.is_dir():
        files = [file for part in PLAIN[:2] for file in (place / part).glob("*.safetensors")]
        return sum(file.stat().st_size for file in files) > LARGE
    return source.path in known_architectures(root)


def known_architectures(root: Path) -> dict[str, Path]:
    """The descriptions in conf/architecture by hub id."""
    files = sorted((root / CONF / ARCHITECTURES).glob("*.yaml"))
    return {name: file for file in files for name in _read(file)["hub"]}


def folder_parts(folder: Path, told: str) -> Parts:
    """The parts of a pipeline folder; no weights are needed in it. Raises InputError for what is
    none.
    """
    index = json_of(folder / "model_index.json")
    if not isinstance(index.get("_class_name"), str):
        raise InputError(
            f"teacher.path = {told}: no model_index.json in it; expected a diffusers pipeline "
            "folder (save_pretrained)"
        )
    configs: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, value in index.items():
        if not (isinstance(value, list) and len(value) == 2 and value[1]):
            continue
        if not (name in PLAIN or name.startswith(ENCODERS)):
            continue
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        found = json_of(folder / name / file)
        if not found:
            raise InputError(f"teacher.path = {told}: {name}/{file} is missing or not readable")
        configs[name] = (str(value[1]), found)
    length = json_of(folder / "tokenizer" / "tokenizer_config.json").get("model_max_length")
    clip = length if isinstance(length, int) and length <= 10**6 else CLIP_TOKENS
    return Parts(told, str(index["_class_name"]), configs, folder, clip)


def _described(file: Path) -> Parts:
    content = _read(file)
    configs = {
        name: (part["class"], {k: v for k, v in part.items() if k != "class"})
        for name, part in content["parts"].items()
    }
    return Parts(f"{CONF}/{ARCHITECTURES}/{file.name}", content["pipeline"], configs)


def _read(file: Path) -> dict[str, Any]:
    """A description; InputError for a file that is none."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        if set(content) == {"hub", "pipeline", "parts"}:
            return dict(content)
    except (OSError, yaml.YAMLError, TypeError):
        pass
    raise InputError(f"{file}: expected a mapping with hub, pipeline and parts")


def json_of(file: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
