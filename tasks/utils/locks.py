"""One process at a time per scratch folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from models.common.errors import InputError

LONGEST_WAIT = 24 * 3600.0

logger = logging.getLogger(__name__)


@contextmanager
def scratch_lock(scratch: Path, wait_seconds: float = LONGEST_WAIT) -> Iterator[None]:
    """Hold the lock file beside `scratch` during the block; the system frees it if the process
    dies.

    Another holder makes the same result (scratch folders are named by their inputs): it is waited
    for, and what it leaves there is used. Raises InputError naming its process id if it still holds
    the lock after `wait_seconds`.
    """
    scratch.parent.mkdir(parents=True, exist_ok=True)
    owner = scratch.with_name(f"{scratch.name}.owner")
    with _acquire(
        FileLock(scratch.with_name(f"{scratch.name}.lock")), scratch, owner, wait_seconds
    ):
        owner.write_text(f"{os.getpid()}\n")
        try:
            yield
        finally:
            owner.unlink(missing_ok=True)


def _acquire(lock: FileLock, scratch: Path, owner: Path, wait_seconds: float) -> AcquireReturnProxy:
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        if wait_seconds > 0:
            logger.info("waiting for process %s, which works in %s", _holder(owner), scratch)
        try:
            return lock.acquire(timeout=wait_seconds)
        except Timeout:
            raise InputError(
                f"{scratch}: in use by process {_holder(owner)}; wait for it to end, or end it, "
                "and run again"
            ) from None


def _holder(owner: Path) -> str:
    try:
        return owner.read_text().strip() or "unknown"
    except FileNotFoundError:
        return "unknown"
