"""Where images come from: one file per kind of source, found by name (`dataset.kind`)."""

from __future__ import annotations

from tasks.data.sources.base import DatasetSettings, Source
from tasks.data.sources.registry import SOURCES, register_source, settings_class

__all__ = ["SOURCES", "DatasetSettings", "Source", "register_source", "settings_class"]
