"""The one place where the tools' environment variables are set: offline, quiet, and kept inside the
project.

Tools read these when they are imported, so programs call `prepare` first. What the user has set
wins. As a program it runs a tool under these settings: `python -m tasks.utils.environment dvc
repro`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

STATE = (
    ".fewstep"  # the folder for what can be thrown away: Prefect's database, DVC's index, scratch
)
MLFLOW_PAGES = (
    "FEWSTEP_MLFLOW_PAGES"  # the address of MLflow's server, for links in Prefect's pages
)


def settings(root: Path) -> dict[str, str]:
    """Environment variables and their default values for a project at `root`."""
    state = root.resolve() / STATE
    return {
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(state / "dvc"),
        "GIT_PYTHON_REFRESH": "quiet",
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
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def prepare(root: Path) -> None:
    """Set the variables that the user has not set, and put this interpreter's folder first on PATH.

    Stages are `python -m tasks.stages.NAME`, so that the same command means the same environment in
    any shell.
    """
    for name, value in settings(root).items():
        os.environ.setdefault(name, value)
    Path(os.environ["PREFECT_HOME"]).mkdir(
        parents=True, exist_ok=True
    )  # Prefect makes no parent folders
    here = str(Path(sys.executable).parent)
    others = [part for part in os.environ.get("PATH", os.defpath).split(os.pathsep) if part != here]
    os.environ["PATH"] = os.pathsep.join([here, *others])


def join_services(root: Path) -> None:
    """Use the servers that `make up` has started in `root`, if they run; what the user has set
    wins.

    Prefect reads its settings when it is imported: call this before.
    """
    for name, variable, path in (
        ("prefect", "PREFECT_API_URL", "/api"),
        ("mlflow", MLFLOW_PAGES, ""),
    ):
        if variable not in os.environ and (
            address := _running(root / STATE / "services" / f"{name}.json")
        ):
            os.environ[variable] = address + path


def _running(record: Path) -> str | None:
    """The address in a service's record, if that very process is alive."""
    import psutil

    try:
        service = json.loads(record.read_text())
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
