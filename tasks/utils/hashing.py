"""Fingerprints of JSON-like content."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel


def fingerprint(content: Any) -> str:
    """Hex SHA-256 of the canonical JSON of `content`, to name scratch folders after the inputs of a
    stage.

    `content` is JSON-ready data that may hold sections at any depth.
    """
    text = json.dumps(
        content, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(content: Any) -> dict[str, Any]:
    if isinstance(content, BaseModel):
        return content.model_dump(mode="json")
    raise TypeError(f"{type(content).__name__} has no canonical JSON")
