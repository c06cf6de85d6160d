"""Datasets made by their stage."""

from __future__ import annotations

from pathlib import Path

from tasks.config.schema import Params
from tasks.data.dataset import load_manifest
from tasks.stages.dataset import run


def make(root: Path, **dataset: object) -> dict:
    run(Params.model_validate({"dataset": dataset}), root)
    return load_manifest(root)
