"""Types of the deployments' parameters: Prefect's server checks them by their JSON schema before
anything runs.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from tasks.config.schema import Params

SECTIONS = "|".join(Params.model_fields)
OVERRIDE = rf"^({SECTIONS})\.[a-z_0-9]+(\.[a-z_0-9]+)*=(.|\n)*$"
REVISION = r"^[A-Za-z0-9@][A-Za-z0-9._/@{}~^+-]*$"
METHODS = ("sigdeg", "swd")


def overrides_schema() -> dict[str, Any]:
    """A list of key=value texts, or a mapping of some of params.yaml's keys with their types and
    ranges.

    `if` rather than `anyOf`, so that the reason of a refusal names the key that is wrong.
    """
    partial = _partial(Params.model_json_schema())
    return {
        "title": "Overrides",
        "description": "Parameters that differ from params.yaml: "
        '["student.steps=600"] or {"student": {"steps": 600}}.',
        "default": [],
        "if": {"type": "array"},
        "then": {"items": {"type": "string", "pattern": OVERRIDE}},
        "else": partial,
    }


def _partial(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of any part of what `schema` describes: nothing is required, references are
    resolved.
    """
    definitions = schema.get("$defs", {})

    def loosened(node: Any) -> Any:
        if isinstance(node, list):
            return [loosened(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return loosened(deepcopy(definitions[node["$ref"].rpartition("/")[2]]))
        kept = {
            key: value
            for key, value in node.items()
            if key not in ("required", "discriminator", "default")
        }
        if "oneOf" in kept:  # without its `kind` a part may fit several variants
            kept["anyOf"] = kept.pop("oneOf")
        return {key: loosened(value) for key, value in kept.items()}

    return dict(loosened({key: value for key, value in schema.items() if key != "$defs"}))


Overrides = Annotated[list[str] | dict[str, Any], WithJsonSchema(overrides_schema())]
Method = Annotated[
    str | None,
    Field(pattern=rf"^({'|'.join(METHODS)})$"),
    WithJsonSchema(
        {
            "title": "Method",
            "description": "sigdeg, swd, or null for the one of params.yaml.",
            "default": None,
            "enum": [*METHODS, None],
        }
    ),
]
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
