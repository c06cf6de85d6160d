"""Kinds of datasets by name; a new one is registered, nothing else changes."""

from __future__ import annotations

from importlib import import_module

from models.common.errors import InputError
from tasks.data.sources.base import DataSettings

SOURCES: dict[str, str | type[DataSettings]] = {
    "mnist": "tasks.data.sources.mnist:MnistDataset",
    "digits": "tasks.data.sources.digits:DigitsDataset",
    "folder": "tasks.data.sources.folder:FolderDataset",
    "npz": "tasks.data.sources.npz:NpzDataset",
    "icons": "tasks.data.sources.icons:IconsDataset",
    "parquet": "tasks.data.sources.parquet:ParquetDataset",
    "ar1": "tasks.data.sources.processes:AR1Dataset",
    "ou": "tasks.data.sources.processes:OUDataset",
    "gbm": "tasks.data.sources.processes:GBMDataset",
    "rough_bergomi": "tasks.data.sources.processes:RoughBergomiDataset",
    "series": "tasks.data.sources.series:OwnSeriesDataset",
    "stocks": "tasks.data.sources.stocks:StocksDataset",
    "none": "tasks.data.sources.none:NoDataset",
}


def register_source(kind: str, settings: str | type[DataSettings]) -> None:
    """Make `dataset.kind = kind` known: its settings class, or "module:Class", imported when asked
    for.

    Raises InputError if the name is taken by another.
    """
    if SOURCES.setdefault(kind, settings) != settings:
        raise InputError(f"dataset.kind = {kind}: registered already as {SOURCES[kind]}")


def settings_class(kind: str) -> type[DataSettings]:
    """The settings class of a kind; raises KeyError for an unknown one."""
    known = SOURCES[kind]
    if isinstance(known, str):
        module, _, name = known.partition(":")
        found: type[DataSettings] = getattr(import_module(module), name)
        return found
    return known
