"""Types of the deployments' parameters: Prefect's server checks them by their JSON schema before
anything runs, and the UI makes its form of it.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, GetJsonSchemaHandler, WithJsonSchema
from pydantic_core import CoreSchema

from tasks.config.presets import DEFAULT, presets
from tasks.config.schema import Params

REVISION = r"^[A-Za-z0-9@][A-Za-z0-9._/@{}~^+-]*$"
Node = dict[str, Any]


class _PresetNames:
    """The presets of the project in whose folder the schema is made."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> Node:
        about = presets(Path.cwd())
        told = "; ".join(f"{name}: {line}" for name, line in about.items())
        return {
            "title": "Preset",
            "description": f"A file of conf/preset. {told}",
            "default": DEFAULT,
            "type": "string",
            "enum": list(about),
        }


def overrides_schema() -> Node:
    """Any part of the params, with the type, range and description of every key."""
    schema = Params.model_json_schema()
    sections = _partial(schema, schema.get("$defs", {}))
    return {
        **sections,
        "title": "Overrides",
        "description": 'What differs from the preset: {"student": {"steps": 600}}.',
        "default": {},
    }


def _partial(node: Any, definitions: Node) -> Any:
    """The schema of any part of what `node` describes: nothing is required, references are
    resolved, and the choices of a variant become one object with the keys of all.
    """
    if isinstance(node, list):
        return [_partial(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        named = deepcopy(definitions[node["$ref"].rpartition("/")[2]])
        return _partial(named | {k: v for k, v in node.items() if k != "$ref"}, definitions)
    if "discriminator" in node:
        return _any_variant(node, definitions)
    return {
        key: _properties(value, definitions)
        if key == "properties"
        else _partial(value, definitions)
        for key, value in node.items()
        if key not in ("required", "default", "$defs")
    }


def _properties(properties: Node, definitions: Node) -> Node:
    return {name: _partial(schema, definitions) for name, schema in properties.items()}


def _any_variant(node: Node, definitions: Node) -> Node:
    """One object for all variants of a section: without its tag a part may be meant for any of
    them, with it only for that one.
    """
    tag = node["discriminator"]["propertyName"]
    variants = [_partial(option, definitions) for option in node["oneOf"]]
    names = {v["properties"][tag]["const"]: v for v in variants}
    merged: Node = {}
    for variant in variants:
        for name, schema in variant["properties"].items():
            known = merged.setdefault(name, [])
            if schema not in known:
                known.append(schema)
    properties = {name: _either(schemas) for name, schemas in merged.items() if name != tag}
    first = variants[0]["properties"][tag]
    about = {key: first[key] for key in ("title", "description") if key in first}
    return {
        "type": "object",
        "properties": {tag: {"type": "string", "enum": list(names), **about}, **properties},
        "additionalProperties": False,
        "allOf": [
            {
                "if": {"properties": {tag: {"const": name}}, "required": [tag]},
                "then": {"propertyNames": {"enum": list(variant["properties"])}},
            }
            for name, variant in names.items()
        ],
    }


def _either(schemas: list[Node]) -> Node:
    """The schema of a key that variants may define differently."""
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


Preset = Annotated[str, _PresetNames()]
Overrides = Annotated[dict[str, Any], WithJsonSchema(overrides_schema())]
Revision = Annotated[
    str | None,
    Field(pattern=REVISION),
    WithJsonSchema(
        {
            "title": "Revision",
            "description": "Branch, tag or commit to work on, in its own worktree; null: in place.",
            "default": None,
            "type": ["string", "null"],
            "pattern": REVISION,
        }
    ),
]
