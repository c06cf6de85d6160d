"""One process at a time per scratch folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from models.errors import InputError


@contextmanager
def scratch_lock(scratch: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file beside `scratch` during the block; the system frees it if the process dies.

    Raises InputError naming the holder's process id if another process still holds it after `wait_seconds`.
    """
    scratch.parent.mkdir(parents=True, exist_ok=True)
    path = scratch.with_name(f"{scratch.name}.lock")
    owner = scratch.with_name(f"{scratch.name}.owner")
    try:
        lock = FileLock(path).acquire(timeout=wait_seconds)
    except Timeout:
        holder = owner.read_text().strip() if owner.exists() else "unknown"
        raise InputError(
            f"{scratch}: in use by process {holder}; wait for it to end, or end it, and run again"
        ) from None
    with lock:
        owner.write_text(f"{os.getpid()}\n")
        try:
            yield
        finally:
            owner.unlink(missing_ok=True)
