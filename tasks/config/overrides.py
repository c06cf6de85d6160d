"""Reading a YAML parameter file, applying `key=value` overrides, and wording what is wrong in one
line.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from models.common.errors import InputError
from tasks.utils.redaction import redact

SHOWN_ERRORS = 3

Model = TypeVar("Model", bound=BaseModel)
Location = tuple[int | str, ...]


def read_overridden(model: type[BaseModel], path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The mapping in the YAML file with `key.sub=value` overrides applied; raises InputError.

    An override may name any key that `model` knows, in the file or not. One that picks another
    variant of a section (`teacher.source=train`) drops the keys which the new variant lacks or has
    other defaults for.
    """
    data = read_mapping(path)
    parsed = [parse_override(text) for text in overrides]
    # variants first, so that their own keys may come in any order on the command line
    for keys, value in sorted(parsed, key=lambda item: not list(tags_in(model, *item))):
        apply_override(model, data, keys, value)
    return data


def validated(model: type[Model], data: Mapping[str, Any], source: str) -> Model:
    """`model` made from plain data; raises InputError with one line for all that is wrong."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        told = [_describe(model, data, detail) for detail in details[:SHOWN_ERRORS]]
        more = len(details) - len(told)
        raise InputError(
            redact(f"{source}: {'; '.join(told)}{f' (and {more} more)' if more else ''}")
        ) from None


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; InputError if there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such parameter file; run in the project's folder or give --params FILE"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read as UTF-8 text ({error}); expected a YAML file"
        ) from None
    data = _yaml(text, path.name)
    if not isinstance(data, dict):
        raise InputError(
            f"{path.name}: found {_shown(data)}, expected a mapping such as `student: "
            f"{{steps: 300}}`"
        )
    return data


def _yaml(text: str, source: str) -> Any:
    """YAML 1.2, as DVC reads it: 1e-4 is a number, `no` is a string, a key given twice is an
    error.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = (error.problem or "syntax error").split("\n")[0]
        fix = "check quotes, brackets and indentation"
        raise InputError(f"{source}{where}: not valid YAML ({problem}); {fix}") from None
    except YAMLError as error:
        raise InputError(f"{source}: not valid YAML ({str(error).splitlines()[0]})") from None


def parse_override(text: str) -> tuple[list[str], Any]:
    """ "a.b=value" as keys and the value read as YAML; InputError for anything else."""
    name, equals, value = text.partition("=")
    keys = name.split(".")
    if not equals or not all(keys):
        raise InputError(f"{redact(text)!r}: expected key=value, such as student.steps=600")
    return keys, _yaml(value, f"override {name}")


def nested(texts: Sequence[str]) -> dict[str, Any]:
    """ "a.b=value" texts as one nested mapping; of two for the same key the last counts."""
    tree: dict[str, Any] = {}
    for text in texts:
        keys, value = parse_override(text)
        place = tree
        for key in keys[:-1]:
            if not isinstance(place.get(key), dict):
                place[key] = {}
            place = place[key]
        place[keys[-1]] = value
    return tree


def tags_in(model: type[BaseModel], keys: Sequence[str], value: Any) -> Iterator[tuple[str, str]]:
    """Variants that an override picks, as Hydra's groups: "method.kind=swd" gives ("method",
    "swd").
    """
    variants = [model]
    for depth, key in enumerate(keys):
        known = [v for v in variants if key in v.model_fields]
        if len(variants) > 1 and depth == len(keys) - 1 and _variant(variants, key, value):
            yield "/".join(keys[:-1]), str(value)
        variants = [option for v in known for option in variants_of(v, key)]
    if isinstance(value, dict):
        for key, inner in value.items():
            if len(variants) > 1 and _variant(variants, str(key), inner):
                yield "/".join(keys), str(inner)


def apply_override(
    model: type[BaseModel], data: dict[str, Any], keys: Sequence[str], value: Any
) -> None:
    """Set `value` at `keys` in `data`, of which any key that `model` knows may be absent.

    Picking another variant drops the keys of the former one. Raises InputError for unknown keys.
    """
    target, variants = data, [model]
    for depth, key in enumerate(keys):
        dotted = ".".join(keys[: depth + 1])
        known = {
            name: field for variant in variants for name, field in variant.model_fields.items()
        }
        if key not in known:
            raise InputError(f"override {dotted}: unknown key{_suggest(key, known)}")
        if depth == len(keys) - 1:
            break
        variants = [
            option
            for v in variants
            if key in v.model_fields
            for option in _models(_annotation(v, key))
        ]
        if not variants and get_origin(known[key].annotation) is dict:
            _set_below(target, list(keys[depth:]), value)
            return
        if not variants:
            raise InputError(
                f"override {'.'.join(keys)}: {dotted} has no keys below it; set {dotted}=VALUE"
            )
        if not isinstance(target.get(key), dict):
            target[key] = {}
        target = target[key]
    if len(variants) > 1 and (chosen := _variant(variants, keys[-1], value)):
        changed = target.get(keys[-1]) != value
        for name in [
            name for name in target if _belongs_to_others(name, chosen, variants, changed)
        ]:
            del target[name]
    target[keys[-1]] = value


def _set_below(target: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set a value in a free mapping, such as `teacher.arguments.width`."""
    for key in keys[:-1]:
        if not isinstance(target.get(key), dict):
            target[key] = {}
        target = target[key]
    target[keys[-1]] = value


def _belongs_to_others(
    name: str, chosen: type[BaseModel], variants: list[type[BaseModel]], changed: bool
) -> bool:
    """Whether a key was meant for another variant: `chosen` has none of that name or, if new, with
    another default.
    """
    others = [v.model_fields[name] for v in variants if v is not chosen and name in v.model_fields]
    if name not in chosen.model_fields:
        return bool(others)
    own = chosen.model_fields[name]
    return (
        changed
        and not own.is_required()
        and any(field.get_default() != own.get_default() for field in others)
    )


def _variant(variants: list[type[BaseModel]], key: str, value: Any) -> type[BaseModel] | None:
    """The member of a discriminated union whose `key: Literal[value]` matches."""
    for variant in variants:
        if key in variant.model_fields and get_args(_annotation(variant, key)) == (value,):
            return variant
    return None


def variants_of(model: type[BaseModel], key: str) -> list[type[BaseModel]]:
    """The sections that may stand at `key`: none for a plain value, several for a choice."""
    return _models(_annotation(model, key))


def tag_of(variant: type[BaseModel]) -> tuple[str, str]:
    """Key and value that choose a variant: ("kind", "swd")."""
    for name, field in variant.model_fields.items():
        values = get_args(field.annotation)
        if get_origin(field.annotation) is Literal and len(values) == 1:
            return name, str(values[0])
    raise TypeError(f"{variant.__name__}: a variant needs a key of type Literal['its name']")


def _annotation(model: type[BaseModel], key: str) -> Any:
    return model.model_fields[key].annotation


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Models that an annotation may hold directly: itself, or the members of a union."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Literal, tuple, list):
        return []
    return [model for option in get_args(annotation) for model in _models(option)]


def _describe(model: type[BaseModel], data: Mapping[str, Any], detail: ErrorDetails) -> str:
    keys, variants = _resolve(model, data, detail["loc"], named=detail["type"] == "missing")
    dotted = ".".join(str(key) for key in keys)
    if detail["type"] in ("extra_forbidden", "invalid_key"):
        known = {name for variant in variants for name in variant.model_fields}
        return f"{dotted}: unknown key{_chosen(variants)}{_suggest(str(keys[-1]), known)}"
    if detail["type"] == "missing":
        return f"{dotted}: missing, expected a value"
    if detail["type"] == "union_tag_not_found":
        tag = detail["ctx"]["discriminator"].strip("'")
        return f"{dotted}.{tag}: missing, expected one of {_tags(variants, str(keys[-1]), tag)}"
    if detail["type"] == "union_tag_invalid":
        tag = detail["ctx"]["discriminator"].strip("'")
        found, expected = detail["ctx"]["tag"], detail["ctx"]["expected_tags"]
        return f"{dotted}.{tag} = {found}: expected one of {expected}"
    expected = _expected(detail)
    if detail["type"] == "value_error" and isinstance(detail["input"], dict | BaseModel):
        return f"{dotted}.{expected}" if dotted else expected
    return f"{dotted} = {_shown(detail['input'])}: {expected}"


def _resolve(
    model: type[BaseModel], data: Any, loc: Location, named: bool
) -> tuple[list[int | str], list[type[BaseModel]]]:
    """Keys as the user wrote them (pydantic adds the tags of unions) and the models that hold the
    last one.

    `named`: the last entry of `loc` is surely a key, even if the data lacks it.
    """
    keys: list[int | str] = []
    variants = [model]
    holders = variants
    for position, part in enumerate(loc):
        surely_key = named and position == len(loc) - 1
        absent = isinstance(data, dict) and part not in data and not surely_key
        if absent and (part in data.values() or _is_tag(variants, part)):
            variants = [v for v in variants if _has_literal(v, part)]
            continue
        keys.append(part)
        holders = variants
        variants = [
            o
            for v in variants
            if part in v.model_fields
            for o in _models(_annotation(v, str(part)))
        ]
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list | tuple) and isinstance(part, int) and part < len(data):
            data = data[part]
    return keys, holders


def _chosen(variants: list[type[BaseModel]]) -> str:
    """The tag of the one variant in question, such as " with source = pretrained"."""
    fields = variants[0].model_fields.items() if len(variants) == 1 else ()
    tags = [
        (name, get_args(field.annotation))
        for name, field in fields
        if get_origin(field.annotation) is Literal
    ]
    return "".join(f" with {name} = {values[0]}" for name, values in tags if len(values) == 1)


def _is_tag(variants: list[type[BaseModel]], part: int | str) -> bool:
    """Whether it chooses one of the variants, also where the user left the choice out."""
    is_key = any(part in v.model_fields for v in variants)
    return not is_key and any(_has_literal(v, part) for v in variants)


def _has_literal(model: type[BaseModel], tag: int | str) -> bool:
    return any(get_args(field.annotation) == (tag,) for field in model.model_fields.values())


EXPECTED = {
    "greater_than": "a number > {gt:g}",
    "greater_than_equal": "a number >= {ge:g}",
    "less_than": "a number < {lt:g}",
    "less_than_equal": "a number <= {le:g}",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "literal_error": "{expected}",
    "tuple_type": "a list such as [1, 2]",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
}


def _expected(detail: ErrorDetails) -> str:
    template = EXPECTED.get(detail["type"])
    if template is not None:
        return "expected " + template.format(**detail.get("ctx", {}))
    return detail["msg"].removeprefix("Value error, ")


def _tags(variants: list[type[BaseModel]], key: str, tag: str) -> str:
    """What `tag` may be for the section at `key` of these models."""
    options = [o for v in variants if key in v.model_fields for o in variants_of(v, key)]
    found = [
        repr(a) for o in options if tag in o.model_fields for a in get_args(_annotation(o, tag))
    ]
    return ", ".join(dict.fromkeys(found))


def _suggest(key: str, known: Any) -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    if close:
        return f", did you mean {close[0]}?"
    return f", expected one of {', '.join(sorted(known))}"


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, default=str)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
