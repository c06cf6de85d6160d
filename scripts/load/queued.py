"""Runs of a deployment that wait in a Prefect server's queue: submission, a worker's question, and
`make status`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.load.timing import timed

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

TITLE = "Prefect's queue"
UNIT = "queued runs of `distill/preset`, whose limit is two at once"
DEPLOYMENT = "distill/preset"
LAST = 10  # submissions that are timed


def measure(
    sizes: Sequence[int], folder: Path, project: Path
) -> Iterator[tuple[int, dict[str, float]]]:
    """Seconds by step, at so many queued runs; no worker takes them."""
    from prefect import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.services.own_server import own_server

    with own_server(project) as url, temporary_settings({PREFECT_API_URL: url}):
        setup = [sys.executable, "-m", "flows.services.prefect_setup"]
        env = os.environ | {"PREFECT_API_URL": url}
        subprocess.run(setup, cwd=project, env=env, check=True, capture_output=True)
        with get_client(sync_client=True) as client:
            deployment, made = client.read_deployment_by_name(DEPLOYMENT).id, 0
            for size in sizes:
                for _ in range(made, max(made, size - LAST)):
                    submit(client, deployment, project)
                made = max(made, size - LAST)
                steps: dict[str, float] = {}
                with timed(steps, "submit one"):
                    for _ in range(made, size):
                        submit(client, deployment, project)
                steps["submit one"] /= size - made
                made = size
                yield size, steps | asked(client, project)


def submit(client: SyncPrefectClient, deployment: Any, project: Path) -> None:
    """One more run, as `prefect deployment run` asks for it."""
    given = {"preset": "tiny", "overrides": {"student": {"steps": 9}}, "revision": "HEAD"}
    client.create_flow_run_from_deployment(deployment, parameters=given)


def asked(client: SyncPrefectClient, project: Path) -> dict[str, float]:
    """Seconds of the questions that workers, pages and people ask again and again."""
    from flows.services.services import show

    steps: dict[str, float] = {}
    with timed(steps, "a worker asks for work"):
        path = "/work_pools/local/get_scheduled_flow_runs"
        client._client.post(path, json={"limit": 10}).raise_for_status()
    with timed(steps, "the list of runs"):
        client.read_flow_runs(limit=200)
    with timed(steps, "`make status`"), redirect_stdout(StringIO()):
        show(project)
    return steps
