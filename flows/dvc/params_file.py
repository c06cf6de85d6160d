"""params.yaml, where DVC sees every parameter: written whole, from a preset and overrides."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.common.errors import InputError
from tasks.config.overrides import read_mapping
from tasks.config.presets import compose
from tasks.config.schema import Params, load_params, params_dict
from tasks.config.written import params_text
from tasks.utils.atomic import atomic_write_text
from tasks.utils.redaction import redact

PARAMS = "params.yaml"
FORMER = Path(".fewstep/params-before.yaml")
SHOWN_CHANGES = 6
HEADER = (
    "Composed from conf/ by `fewstep run {command}`; the next run writes it anew.\n"
    'To change values: make run ARGS="key=value ...", or a preset of your own in conf/preset.'
)


def as_list(overrides: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Overrides as "key=value" texts; a mapping may be nested or have dotted keys."""
    if isinstance(overrides, Mapping):
        return [f"{key}={json.dumps(value)}" for key, value in _leaves(overrides)]
    return list(overrides)


def write_preset(root: Path, preset: str, overrides: Sequence[str]) -> tuple[Params, list[str]]:
    """Compose a preset of the project at `root` with overrides and write its params.yaml.

    Returns the typed params and what changed, as "student.steps: 300 -> 500"; the former file is
    kept as .fewstep/params-before.yaml. Nothing is written if the result would not be valid
    (InputError).
    """
    params = compose(root, preset, overrides)
    command = redact(shlex.join(["--preset", preset, *overrides]))
    return params, _write(root / PARAMS, params, HEADER.format(command=command))


def apply_overrides(path: Path, overrides: Sequence[str]) -> tuple[Params, list[str]]:
    """Write overrides into the parameter file at `path` itself; otherwise as write_preset."""
    params = load_params(path, overrides)
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return params, _write(path, params, "\n".join(line[2:] for line in lines[:end]))


def _write(path: Path, params: Params, header: str) -> list[str]:
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    text = params_text(params, header)
    changes = _differences(_values(path), params_dict(params))
    if before and changes:
        atomic_write_text(path.parent / FORMER, before)
    if text != before:
        atomic_write_text(path, text)
    more = len(changes) - SHOWN_CHANGES
    return [*changes[:SHOWN_CHANGES], f"and {more} more"] if more > 0 else changes


def _values(path: Path) -> Mapping[str, Any]:
    try:
        return read_mapping(path)
    except InputError:  # none yet, or a broken one, which is written anew
        return {}


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    old, new = dict(_leaves(before)), dict(_leaves(after))
    keys = [*old, *(key for key in new if key not in old)]
    return [
        f"{key}: {_shown(old, key)} -> {_shown(new, key)}"
        for key in keys
        if (key in old, old.get(key)) != (key in new, new.get(key))
    ]


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "(unset)"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found += (
            _leaves(value, f"{name}.") if isinstance(value, Mapping) and value else [(name, value)]
        )
    return found
