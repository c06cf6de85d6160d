"""The place of a stage's unfinished work."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tasks.utils.hashing import fingerprint


def scratch_for(root: Path, stage: str, *inputs: Any) -> Path:
    """The stage's own place for unfinished work, outside DVC's outs, named by a hash of all its
    inputs.

    The code is one of them: what an earlier version left there must not pass for this one's work.
    """
    plain = [i.model_dump(mode="json") if isinstance(i, BaseModel) else i for i in inputs] + [
        code_fingerprint()
    ]
    return root / ".fewstep" / "scratch" / stage / fingerprint(plain)[:16]


@cache
def code_fingerprint() -> str:
    """sha256 (hex) of the sources of models/ and tasks/."""
    top = Path(__file__).resolve().parents[2]
    files = sorted(top.glob("models/**/*.py")) + sorted(top.glob("tasks/**/*.py"))
    named = [(str(file.relative_to(top)).encode(), file.read_bytes()) for file in files]
    return hashlib.sha256(b"".join(name + content for name, content in named)).hexdigest()
