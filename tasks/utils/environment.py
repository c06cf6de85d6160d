"""The one place where the tools' environment variables are set: offline, quiet, and kept inside the
project.

Tools read these when they are imported, so programs call `prepare` first. What the user has set
wins. As a program it runs a tool under these settings: `python -m tasks.utils.environment dvc
repro`.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from models.common.errors import InputError
from tasks.utils.cpus import usable_cores
from tasks.utils.git import LOCAL_VARIABLES
from tasks.utils.proxies import spare_loopback
from tasks.utils.streams import tolerate_encodings

STATE = (
    ".fewstep"  # the folder for what can be thrown away: Prefect's database, DVC's index, scratch
)
MLFLOW_PAGES = "FEWSTEP_MLFLOW_PAGES"  # the address of MLflow's server, for links in the Prefect UI


# In a project's path.
UNUSABLE = {
    ":": "separates the folders of PATH",
    "%": "MLflow's addresses of files read %41 as a letter",
    "{": "DVC puts values between braces",
    "}": "DVC puts values between braces",
    "?": "addresses of databases end there",
    "\n": "a line ends there",
}


def settings(root: Path) -> dict[str, str]:
    """Environment variables and their default values for a project at `root`."""
    state = root.resolve() / STATE
    return {
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(state / "dvc"),
        "GIT_PYTHON_REFRESH": "quiet",
        # Bars of a second between the stages' own lines.
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_MODULES_CACHE": str(state / "hf_modules"),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        # Four more processes, for what this project does not use.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # A run whose process was killed is known by its silence; Prefect allows 30 s at least.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_HOME": str(state / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # The server's limits survive its restart only in files.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
            "prefect.server.concurrency.lease_storage.filesystem"
        ),
        # A first start makes a database, which takes longer than the default 20 s on two cores.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "RAY_USAGE_STATS_ENABLED": "0",
        # It warns of every processor that would be quicker with torchvision.
        "TRANSFORMERS_VERBOSITY": "error",
    }


# A thread that waits for the others of its team spins this often and then sleeps: as quick as
# libgomp's own 300,000 on an idle machine. Beside other programs tasks/utils/spinning.py makes it
# 100: training beside one busy core was up to 16 times slower without (docs/decisions.md).
SPINS = "20000"
# Variables that make Python or git look elsewhere than in the project.
MISLEADING = ("PYTHONSAFEPATH", *LOCAL_VARIABLES)


def thread_settings(environ: MutableMapping[str, str]) -> dict[str, str]:
    """Defaults for OpenMP, read when torch is imported: threads, and how long an idle one spins."""
    found = {"OMP_NUM_THREADS": str(usable_cores())}
    # GOMP_SPINCOUNT would overrule a policy that the user has chosen.
    return found if "OMP_WAIT_POLICY" in environ else found | {"GOMP_SPINCOUNT": SPINS}


def ray_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Who may use Ray, read when it is imported: on a cluster of this project's own only those who
    have its token, since Ray runs any code it is sent and loopback is open to every user of the
    machine. A cluster at RAY_ADDRESS has settings of its own.
    """
    if environ.get("RAY_ADDRESS"):
        return {"RAY_AUTH_MODE": "disabled"}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def prepare(root: Path) -> None:
    """Set the variables that the user has not set, and put this interpreter's folder first on PATH.

    Stages are `python -m tasks.stages.NAME`, so that the same command means the same environment in
    any shell. Call it before torch, Prefect or MLflow is imported. Loopback is taken out of every
    proxy; a proxy that cannot be used is named in a line on stderr.
    """
    tolerate_encodings()
    for name in MISLEADING:
        os.environ.pop(name, None)
    for line in spare_loopback(os.environ):
        print(f"warning: {line}", file=sys.stderr)
    defaults = settings(root) | thread_settings(os.environ) | ray_settings(os.environ)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    private_folder(Path(os.environ["PREFECT_HOME"]))  # Prefect makes no parent folders
    here = str(Path(sys.executable).parent)
    others = [part for part in os.environ.get("PATH", os.defpath).split(os.pathsep) if part != here]
    os.environ["PATH"] = os.pathsep.join([here, *others])


def private_folder(path: Path) -> None:
    """Make a folder that other users of this machine cannot look into, and its parents as usual.

    Databases, profiles and logs of services lie there, which may hold what a user has typed. What
    its owner allows a group stays allowed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o007 and path.stat().st_uid == os.getuid():
        path.chmod(mode & 0o770)


def check_place(root: Path) -> None:
    """Raise InputError if the project's path has a character that a tool reads as syntax.

    Spaces, `@`, `#` and the like are no matter.
    """
    path = str(root.resolve())
    told = [f"{name!r}: {why}" for name, why in UNUSABLE.items() if name in path]
    if "'" in path and '"' in path:
        told.append("' and \": MLflow's database takes one of the two")
    if told:
        raise InputError(f"{path}: {'; '.join(told)}: move or rename the folder")


def join_services(root: Path) -> None:
    """Use the servers that `make up` has started in `root`, if they run; what the user has set
    wins.

    Prefect reads its settings when it is imported: call this before.
    """
    for name, variable, path in (
        ("prefect", "PREFECT_API_URL", "/api"),
        ("mlflow", MLFLOW_PAGES, ""),
    ):
        if variable not in os.environ and (address := running_service(root, name)):
            os.environ[variable] = address + path


def running_service(root: Path, name: str) -> str | None:
    """The address of a service that `make up` has started in `root`, if that very process is alive;
    `name`: prefect, worker or mlflow.
    """
    import psutil

    try:
        service = json.loads((root / STATE / "services" / f"{name}.json").read_text())
        alive = abs(psutil.Process(service["pid"]).create_time() - service["started"]) < 0.02
        return str(service["address"]) if alive else None
    except (OSError, ValueError, KeyError, TypeError, psutil.NoSuchProcess):
        return None


def main(argv: list[str]) -> int:
    """Replace this process by the command `argv`, which uses a running server; returns 2 if there
    is none.
    """
    if not argv:
        print("usage: python -m tasks.utils.environment COMMAND [ARGUMENT ...]", file=sys.stderr)
        return 2
    prepare(Path.cwd())
    join_services(Path.cwd())
    try:
        os.execvp(argv[0], argv)
    except FileNotFoundError:
        print(f"error: {argv[0]}: no such command in this environment", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
