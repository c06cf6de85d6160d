"""Where images and series come from: kinds of sources, found by name (`dataset.kind`)."""

from __future__ import annotations

from tasks.data.sources.base import DatasetSettings, DataSettings, Source
from tasks.data.sources.registry import SOURCES, register_source, settings_class
from tasks.data.sources.series_base import SeriesSettings, SeriesSource

__all__ = [
    "SOURCES",
    "DataSettings",
    "DatasetSettings",
    "SeriesSettings",
    "SeriesSource",
    "Source",
    "register_source",
    "settings_class",
]
