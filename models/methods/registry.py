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
    """Places written as "module:Class": the settings, the method made from them, and its students'
    pipeline.
    """

    config: str
    method: str
    pipeline: str


MULTISTEP = "models.methods.multistep_pipeline:MultistepPipeline"
METHODS: dict[str, Entry] = {
    "sigdeg": Entry(
        "models.methods.sigdeg.config:SigDEGConfig",
        "models.methods.sigdeg.method:SigDEG",
        "models.methods.sigdeg.pipeline:SigDEGPipeline",
    ),
    "swd": Entry(
        "models.methods.swd.config:SwDConfig",
        "models.methods.swd.method:SwD",
        "models.methods.swd.pipeline:SwDPipeline",
    ),
    "sfd": Entry("models.methods.sfd_config:SFDConfig", "models.methods.sfd:SFD", MULTISTEP),
    "consistency": Entry(
        "models.methods.consistency_config:ConsistencyConfig",
        "models.methods.consistency:Consistency",
        MULTISTEP,
    ),
}


def register_method(name: str, config: str, method: str, pipeline: str = MULTISTEP) -> None:
    """Add a method: its settings are a :class:`Section` with `kind: Literal[name]`, its students
    sample with ``pipeline``.

    Raises InputError if the name is taken by another.
    """
    entry = Entry(config, method, pipeline)
    if METHODS.setdefault(name, entry) != entry:
        raise InputError(f"method {name}: registered already as {METHODS[name].method}")


def config_class(name: str) -> type[Section]:
    """The settings class of a method; no import of torch."""
    found: type[Section] = load(METHODS[name].config)
    return found


def method_class(name: str) -> Any:
    """The method itself."""
    return load(METHODS[name].method)


def pipeline_names() -> list[str]:
    """Names of all classes that open students."""
    places = {MULTISTEP, *(entry.pipeline for entry in METHODS.values())}
    return sorted(place.partition(":")[2] for place in places)


def pipeline_class(name: str) -> Any:
    """The pipeline of that class name."""
    places = {MULTISTEP, *(entry.pipeline for entry in METHODS.values())}
    return load(next(place for place in places if place.endswith(f":{name}")))


def load(place: str) -> Any:
    """The object at "module:name"."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
