"""The distillation methods by name: settings and method are imported when they are asked for.

A method outside this package adds itself with :func:`register_method`, from a module that the
params' `extensions` name.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

from models.common.config import Section
from models.common.errors import InputError


class Entry(NamedTuple):
    """Places written as "module:Class": the settings, and the method made from them."""

    config: str
    method: str


METHODS: dict[str, Entry] = {
    "sigdeg": Entry(
        "models.methods.sigdeg.config:SigDEGConfig", "models.methods.sigdeg.method:SigDEG"
    ),
    "swd": Entry("models.methods.swd.config:SwDConfig", "models.methods.swd.method:SwD"),
}


def register_method(name: str, config: str, method: str) -> None:
    """Add a method: its settings are a :class:`Section` with `kind: Literal[name]`.

    Raises InputError if the name is taken by another.
    """
    entry = Entry(config, method)
    if METHODS.setdefault(name, entry) != entry:
        raise InputError(f"method {name}: registered already as {METHODS[name].method}")


def config_class(name: str) -> type[Section]:
    """The settings class of a method; no import of torch."""
    found: type[Section] = load(METHODS[name].config)
    return found


def method_class(name: str) -> Any:
    """The method itself."""
    return load(METHODS[name].method)


def load(place: str) -> Any:
    """The object at "module:name"."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
