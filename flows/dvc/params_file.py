"""`key=value` overrides, checked first and then written into params.yaml, where DVC sees them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, RoundTripRepresenter
from ruamel.yaml.nodes import ScalarNode

from tasks.config.overrides import read_overridden
from tasks.config.schema import Params, load_params
from tasks.utils.atomic import atomic_write_text


def as_list(overrides: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Overrides as "key=value" texts; a mapping may be nested or have dotted keys."""
    if isinstance(overrides, Mapping):
        return [f"{key}={json.dumps(value)}" for key, value in _leaves(overrides)]
    return list(overrides)


def apply_overrides(path: Path, overrides: Sequence[str]) -> tuple[Params, list[str]]:
    """Write the overrides into the parameter file at `path`; comments stay.

    Returns the typed params and what changed, as "student.steps: 300 -> 500". Nothing is written if
    nothing changes, or if the result would not be valid (InputError).
    """
    params = load_params(path, overrides)
    before, after = (read_overridden(Params, path, texts) for texts in ((), overrides))
    changes = _differences(before, after)
    if changes:
        _rewrite(path, after)
    return params, changes


class _Representer(RoundTripRepresenter):
    """Writes `null` where ruamel would leave the value out."""

    def represent_null(self, _: None) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(type(None), _Representer.represent_null)


def _rewrite(path: Path, wanted: Mapping[str, Any]) -> None:
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.width = 4096
    yaml.preserve_quotes = True
    document = yaml.load(path.read_text(encoding="utf-8"))
    _merge(document, wanted)
    text = io.StringIO()
    yaml.dump(document, text)
    atomic_write_text(path, text.getvalue())


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


def _merge(document: MutableMapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key in [key for key in document if key not in wanted]:
        del document[key]
    for key, value in wanted.items():
        if isinstance(value, Mapping) and isinstance(document.get(key), MutableMapping):
            _merge(document[key], value)
        elif key not in document or document[key] != value:
            document[key] = value
