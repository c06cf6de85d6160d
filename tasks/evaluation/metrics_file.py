"""Reading data/evaluation/metrics.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_metrics(root: Path) -> dict[str, Any]:
    """data/evaluation/metrics.json."""
    return dict(
        json.loads((root / "data" / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    )
