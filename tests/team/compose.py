"""What deploy/compose.yaml would start, read by rules of compose: commands and environments of its
services, for processes of this machine in place of containers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from tests.paths import PROJECT

FILE = PROJECT / "deploy/compose.yaml"
VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?::([-?])((?:[^{}]|\{[^{}]*\})*))?\})")


@dataclass(frozen=True)
class Service:
    """One service: its command as a list, and the environment that the file gives it."""

    name: str
    command: list[str]
    env: dict[str, str]


def interpolate(text: str, given: Mapping[str, str]) -> str:
    """Replace ${NAME}, ${NAME:-default}, ${NAME:?message} and $$ as compose does.

    Raises KeyError with the message for a variable that is required and not given.
    """

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if name is None:
            return "$"
        if found := given.get(name):
            return found
        if kind == "?":
            raise KeyError(f"{name}: {rest}")
        return interpolate(rest or "", given)

    return VARIABLE.sub(value, text)


def services(given: Mapping[str, str], places: Mapping[str, str]) -> dict[str, Service]:
    """The services by name, with variables from `given`.

    `places` maps what a container would call another one ("postgres:5432") to its address here.
    """

    def here(value: Any) -> str:
        text = interpolate(str(value), given)
        for name, place in places.items():
            text = text.replace(name, place)
        return text

    content = yaml.safe_load(FILE.read_text())["services"]
    return {
        name: Service(
            name,
            [here(part) for part in service.get("command", [])],
            {
                key: here(value)
                for key, value in (service.get("environment") or {}).items()
                if value is not None
            },
        )
        for name, service in content.items()
    }
