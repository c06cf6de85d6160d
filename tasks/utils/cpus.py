"""How many threads a process may use here, and how long an idle one waits before it sleeps."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
CORES = Path("/sys/devices/system/cpu")


def usable_cores() -> int:
    """The number of cores this process may use at once: those of its CPU affinity, hyperthreads
    counted once, and no more than the container's quota; at least 1.
    """
    return max(1, int(min(_cores(affinity()), cpu_quota())))


def cpu_quota(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float:
    """CPUs' worth of time that the control group allows, for example 1.5; infinity if unlimited.

    Reads `cpu.max` (version 2) and `cpu.cfs_quota_us` (version 1) of this process's group and of
    all above it. Inside a container its own group is the top one.
    """
    found = [math.inf]
    for version_2, top, group in _hierarchies(cgroups, membership):
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                found.append(_quota_2(folder) if version_2 else _quota_1(folder))
    return min(found)


def _hierarchies(cgroups: Path, membership: Path) -> list[tuple[bool, Path, Path]]:
    """(version 2?, its mount, this process's group in it) for each hierarchy that limits CPU."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        relative = place.lstrip("/")
        if controllers == "":
            found.append((True, cgroups, cgroups / relative))
            found.append((True, cgroups / "unified", cgroups / "unified" / relative))
        elif "cpu" in controllers.split(","):
            for name in ("cpu", controllers):
                found.append((False, cgroups / name, cgroups / name / relative))
    return found


def _quota_2(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _quota_1(folder: Path) -> float:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def affinity() -> set[int]:
    """The CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))  # macOS has no affinity


def _cores(cpus: set[int], folder: Path = CORES) -> int:
    """Physical cores among these CPUs: torch, too, does not use a core's second thread."""
    siblings = set()
    for cpu in cpus:
        try:
            siblings.add((folder / f"cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            siblings.add(str(cpu))
    return len(siblings)
