"""Promotion alone, as the flow's task does it: the newest version."""

from __future__ import annotations

from pathlib import Path

from tasks.config.schema import load_params
from tasks.registry import promotion
from tasks.registry.store import open_store
from tasks.utils.cli import user_errors


def main(arguments: list[str]) -> int:
    """Promote the newest version if it is better; mistakes end the process as in every program."""
    root = Path.cwd()
    params = load_params(root / "params.yaml")
    name = params.registration.name
    newest = max(
        int(item.version)
        for item in open_store(root, params).search_model_versions(f"name = '{name}'")
    )
    with user_errors():
        print(promotion.promote(root, params, str(newest)).reason)
    return 0
