"""params.yaml as it is written: every key spelled out, with the description of its field."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from models.common.errors import InputError
from tasks.config.extensions import check_extensions
from tasks.config.overrides import read_mapping, tag_of, variants_of
from tasks.config.schema import Params, params_dict

PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}  # YAML 1.1 reads them so
WIDTH = 100
COLUMN = 26


def params_text(params: BaseModel, header: str) -> str:
    """The whole file: `header` as comment lines, then every key with its value and what it
    means.
    """
    lines = [f"# {line}".rstrip() for line in header.splitlines()]
    for name in type(params).model_fields:
        lines += ["", *_lines(params, name, "")]
    return "\n".join(lines) + "\n"


def check_written(path: Path, params: Params) -> None:
    """Raise InputError if DVC could not see all that `params`, read from `path`, stand for: a key
    that is left to its default, or the present content of the extensions.
    """
    data = read_mapping(path)
    if missing := [name for name in _keys(params_dict(params)) if not _has(data, name)]:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(
            f"{path.name}: {missing[0]}{more}: not written out, so DVC would not see its default "
            "change; compose the file with `fewstep params` or `make run`"
        )
    check_extensions(params.extensions, params.extensions_digest, path.parent)


def _keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _has(tree: Any, name: str) -> bool:
    for key in name.split("."):
        if not isinstance(tree, Mapping) or key not in tree:
            return False
        tree = tree[key]
    return True


def _lines(section: BaseModel, name: str, indent: str, tags: str = "") -> list[str]:
    """Lines of one key; `tags`: the values that it may have if it chooses a variant."""
    value, field = getattr(section, name), type(section).model_fields[name]
    about = " ".join((field.description or "").split())
    if isinstance(value, BaseModel):
        variants = variants_of(type(section), name)
        tag = tag_of(type(value))[0] if len(variants) > 1 else ""
        known = " | ".join(tag_of(variant)[1] for variant in variants) if tag else ""
        keys = sorted(type(value).model_fields, key=lambda key: key != tag)
        first = _commented(f"{indent}{name}:", about, indent)
        return first + [
            line
            for key in keys
            for line in _lines(value, key, indent + "  ", known if key == tag else "")
        ]
    if get_origin(field.annotation) is Literal and not tags:
        options = [str(option) for option in get_args(field.annotation)]
        tags = " | ".join(options) if len(options) > 1 else ""
    about = f"{tags}: {about}" if tags and about else tags or about
    plain = section.model_dump(mode="json", include={name})[name]
    return _commented(f"{indent}{name}: {_flow(plain)}", about, indent)


def _commented(text: str, about: str, indent: str) -> list[str]:
    beside = f"{text:<{COLUMN}} # {about}"
    if not about or len(beside) <= WIDTH:
        return [beside if about else text]
    return [*(f"{indent}# {part}" for part in wrap(about, WIDTH - len(indent) - 2)), text]


def _flow(value: Any) -> str:
    """A value on one line that YAML 1.1 and 1.2 read alike."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str):
        plain = PLAIN.fullmatch(value) and value.lower() not in WORDS
        return value if plain else json.dumps(value, ensure_ascii=False)
    text = json.dumps(value, allow_nan=False)
    if isinstance(value, float) and "e" in text and "." not in text:
        return text.replace("e", ".0e")  # YAML 1.1 takes 1e-05 for a string
    return text
