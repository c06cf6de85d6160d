"""The tiny project with scale-wise distillation."""

from __future__ import annotations

import json
from typing import Any

from tasks.config.schema import Params
from tests.tasks.distillation import settings

PAIRS = [[1.0, 4], [0.8, 6], [0.5, 8]]


SWD: dict[str, Any] = {
    "kind": "swd",
    "schedule": {"kind": "given", "pairs": PAIRS},
    "dmd": {"limit": 1e6, "samples": 16, "steps": 2},
    "gan": {"weight": 5e-3},
    "rates": {"fake": None},
    "fake_updates": 1,
}


def swd_settings(**sections: dict[str, Any]) -> Params:
    """Params of the tiny project with method.kind = swd."""
    content = json.loads(
        settings(**{k: v for k, v in sections.items() if k != "method"}).model_dump_json()
    )
    content["method"] = SWD | sections.get("method", {})
    return Params.model_validate_json(json.dumps(content))
