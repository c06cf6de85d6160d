"""The most memory that this process has held, without what its parent held before it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def own_peak() -> int:
    """The largest resident memory of this process so far, in bytes."""
    # ru_maxrss outlives exec: a child that a large process starts begins with its parent's peak.
    # VmHWM belongs to the program that runs now. Systems without it have ru_maxrss alone.
    found = _high_water_mark(STATUS)
    return _most_resident() if found is None else found


def _high_water_mark(status: Path) -> int | None:
    """VmHWM of a file like /proc/self/status, in bytes; None if it does not tell."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("VmHWM:")]
    return 1024 * int(found[0][1]) if found else None  # "VmHWM:  2024 kB"


def _most_resident() -> int:
    """ru_maxrss in bytes: macOS tells bytes, others KiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
