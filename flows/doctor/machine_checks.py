"""Checks of the machine and the environment: interpreter, packages, compiler, ports, disk, memory,
GPU.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from flows.doctor.check import Finding, fail, ok, size, warn
from flows.services import daemons
from flows.services.ports import LOOPBACK, check_free
from models.common.errors import InputError

OLDEST_PYTHON = (3, 11)
REINSTALL = "touch requirements.lock; make .venv"
LEAST_MEMORY = 2 * 1024**3
SPARE_DISK = 2 * 1024**3  # packages' caches, MLflow, logs
SHOWN = 4
TRAPS = {
    "fastapi": "Prefect's server does not start with it",
    "sqlalchemy": "Prefect's scheduler makes no runs with it",
}


def machine_checks(root: Path, ports: tuple[int, int]) -> list[tuple[str, Callable[[], Finding]]]:
    """All checks of this module, named."""
    return [
        ("python", lambda: python(sys.version_info[:3])),
        ("packages", lambda: packages(root)),
        ("ray[default]", ray_default),
        ("compiler", compiler),
        ("git", git),
        ("port of Prefect", lambda: port(root, "prefect", ports[0], "PORT")),
        ("port of MLflow", lambda: port(root, "mlflow", ports[1], "MLFLOW_PORT")),
        ("disk", lambda: disk(root)),
        ("memory", memory),
        ("gpu", gpu),
    ]


def python(version: tuple[int, ...]) -> Finding:
    """The interpreter is new enough."""
    shown = ".".join(map(str, version))
    if version[:2] < OLDEST_PYTHON:
        return fail(
            "python",
            shown,
            "3.11 or later is needed: rm -r .venv; make PYTHON=/path/to/python3.11 .venv",
        )
    return ok("python", shown)


def installed(name: str) -> str | None:
    """The installed version of a package, None if it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def packages(root: Path) -> Finding:
    """Packages are those of requirements.lock and within the limits of requirements.in."""
    pinned = requirements(root / "requirements.lock")
    missing = [item.name for item in pinned if installed(item.name) is None]
    outside = [item for item in requirements(root / "requirements.in") if not _fits(item)]
    if outside:
        told = [_told(item) for item in outside[:SHOWN]]
        return fail("packages", "; ".join(told), f"install the pinned ones: {REINSTALL}")
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        return fail(
            "packages", f"missing: {', '.join(missing[:SHOWN])}{more}", f"install: {REINSTALL}"
        )
    if other := [item for item in pinned if not _fits(item)]:
        told = [
            f"{item.name} {installed(item.name)} (pinned {_pin(item)})" for item in other[:SHOWN]
        ]
        more = f" and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
        return warn("packages", f"{'; '.join(told)}{more}", f"untested together: {REINSTALL}")
    return ok("packages", f"{len(pinned)} as pinned")


def requirements(path: Path) -> list[Requirement]:
    """The requirements in a file of one a line; comments and options are left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if text and not text.startswith("-"):
            try:
                found.append(Requirement(text))
            except InvalidRequirement:
                raise InputError(
                    f"{path}: {text!r}: expected a line such as numpy==2.4.6"
                ) from None
    return found


def _fits(requirement: Requirement) -> bool:
    """Whether an installed package has a wanted version; local parts such as +cpu do not count.
    Missing ones fit.
    """
    version = installed(requirement.name)
    return version is None or requirement.specifier.contains(
        Version(version).public, prereleases=True
    )


def _pin(requirement: Requirement) -> str:
    return str(requirement.specifier).removeprefix("==")


def _told(requirement: Requirement) -> str:
    reason = TRAPS.get(requirement.name.lower())
    wanted = f"wanted {requirement.specifier}" + (f": {reason}" if reason else "")
    return f"{requirement.name} {installed(requirement.name)} ({wanted})"


def ray_default() -> Finding:
    """Ray came with what its extra `default` brings; bare Ray starts but lacks its agents."""
    needed = [Requirement(text) for text in importlib.metadata.requires("ray") or []]
    of_extra = [
        item for item in needed if item.marker and item.marker.evaluate({"extra": "default"})
    ]
    if missing := sorted({item.name for item in of_extra if installed(item.name) is None}):
        return fail(
            "ray[default]", f"missing: {', '.join(missing)}", "bare ray is not enough: " + REINSTALL
        )
    return ok("ray[default]", f"complete, ray {installed('ray')}")


def compiler() -> Finding:
    """iisignature is built from source; once it is, no compiler is needed."""
    if found := shutil.which("cc"):
        return ok("compiler", found)
    if installed("iisignature"):
        return ok("compiler", "none; not needed, iisignature is built")
    return fail(
        "compiler",
        "no cc; iisignature is built from source",
        "install gcc or clang (Debian: apt install gcc)",
    )


def git() -> Finding:
    """Deployments work in git worktrees, and runs record the commit."""
    found = shutil.which("git")
    return (
        ok("git", found)
        if found
        else fail("git", "not found", "install git (Debian: apt install git)")
    )


def port(root: Path, service: str, number: int, option: str) -> Finding:
    """The port is free, or our own service has it."""
    name = "port of Prefect" if service == "prefect" else "port of MLflow"
    if daemon := daemons.running(root, service):
        return ok(name, f"our server, {daemon.address}")
    try:
        check_free(LOOPBACK, number, option)
    except InputError as error:
        found, _, fix = str(error).partition(": expected a free one; ")
        return warn(name, found, fix or f"choose another: make up {option}=...")
    return ok(name, f"{number} is free")


def disk(root: Path) -> Finding:
    """Room for the trajectories of params.yaml (twice: unfinished shards, and their copy) and some
    more.
    """
    free, needed = shutil.disk_usage(root).free, trajectory_bytes(root) * 2 + SPARE_DISK
    told = f"{size(free)} free; a run needs about {size(needed)}"
    if free < needed:
        return fail(
            "disk",
            told,
            "free space (`dvc gc --workspace` drops old results), or lower trajectories.train",
        )
    return ok("disk", told)


def trajectory_bytes(root: Path) -> int:
    """Estimated size of data/trajectories: the states at the ends of the intervals."""
    from tasks.config.schema import load_params

    params = load_params(root / "params.yaml")
    chosen, dataset = params.trajectories, params.dataset
    channels = int(getattr(dataset, "channels", 1) or 1)
    edge = int(getattr(dataset, dataset.resolution, 64))  # without a dataset, of usual latents
    points = edge**2 if dataset.data_kind == "images" else edge
    cells = (chosen.train + chosen.validation) * channels * points
    return cells * (chosen.intervals + 1) * (2 if chosen.dtype == "float16" else 4)


def memory() -> Finding:
    """Enough for one stage beside the services."""
    seen = psutil.virtual_memory()
    told = f"{size(seen.available)} of {size(seen.total)} available"
    if seen.available < LEAST_MEMORY:
        return warn(
            "memory", told, "end other programs; fewer workers and smaller batches need less"
        )
    return ok("memory", told)


def gpu() -> Finding:
    """PyTorch sees the GPUs that the machine has."""
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
        return ok(
            "gpu",
            f"{torch.cuda.device_count()} x {', '.join(sorted(names))}, CUDA {torch.version.cuda}",
        )
    if os.path.exists("/dev/nvidia0") or shutil.which("nvidia-smi"):
        fix = "install torch with CUDA and a driver that fits it; or run on the CPU as it is"
        return warn("gpu", f"a GPU is there, but torch {torch.__version__} does not use it", fix)
    return ok("gpu", f"none; torch {torch.__version__} computes on the CPU")
