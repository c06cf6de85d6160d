"""The defaults of the typed sections as Hydra's config groups, so that Hydra composes from them.

Every default is defined once, in the class of its section. A section that comes in several
variants (`method: sigdeg | swd`) is a group with an option for each; a variant inside a section
is a group below it (`trajectories/grid`). conf/config.yaml starts from the option `sections`,
which holds what has no variants and chooses the default variants.
"""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from tasks.config.overrides import tag_of, variants_of

ROOT = "sections"


def store_defaults(model: type[BaseModel]) -> set[str]:
    """Register the defaults of `model` and of all variants below it; again replaces them. Returns
    the groups, without those of sections that are null by default: there is nothing to choose from.
    """
    nodes: dict[str, dict[str, Any]] = {}
    nodes[ROOT] = _node(model, {}, "", nodes)
    store = ConfigStore.instance()
    for name, node in nodes.items():
        group, _, option = name.rpartition("/")
        store.store(name=option, group=group or None, node=node)
    return {name.rpartition("/")[0] for name in nodes} - {""}


def _node(
    model: type[BaseModel], given: dict[str, Any], path: str, nodes: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """`model`'s defaults, `given` before them; variants become `nodes` and a choice of them."""
    node, choices = _values(model, given, path, "", nodes)
    return {"defaults": [*choices, "_self_"], **node} if choices else node


def _values(
    model: type[BaseModel],
    given: dict[str, Any],
    path: str,
    inside: str,
    nodes: dict[str, dict[str, Any]],
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    values: dict[str, Any] = {}
    choices: list[dict[str, str]] = []
    for name, field in model.model_fields.items():
        if name not in given and field.is_required():
            continue  # asked for when the composed params are validated
        value = (
            given[name]
            if name in given
            else to_jsonable_python(field.get_default(call_default_factory=True))
        )
        below = f"{inside}{name}"
        options = variants_of(model, name)
        if not options or not isinstance(value, dict):
            values[name] = value
        elif len(options) == 1:
            values[name], more = _values(options[0], value, path, f"{below}/", nodes)
            choices += more
        else:
            group = f"{path}{below}"
            for option in options:
                tag, chosen = tag_of(option)
                same = value if value.get(tag) == chosen else {}
                nodes[f"{group}/{chosen}"] = _node(option, same, f"{group}/", nodes)
            choices.append({below: str(value[tag_of(options[0])[0]])})
    return values, choices
