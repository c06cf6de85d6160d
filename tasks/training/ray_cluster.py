"""Ray: one place that starts or joins it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


@contextmanager
def connect(workers: int | None = None) -> Iterator[int]:
    """A Ray cluster for the block, yielding its number of GPUs.

    Joins the one at ``RAY_ADDRESS``, else starts a local one on loopback, with room for ``workers``
    whatever the number of cores, and stops it at the end. Workers import this checkout: its folder
    goes first on their path.
    """
    import ray

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    started = not ray.is_initialized()
    if started:
        paths = os.pathsep.join(
            [str(CHECKOUT), str(Path.cwd()), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        )
        alone = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "num_cpus": workers}
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}},
            **({} if address else alone),
        )
    try:
        yield int(ray.cluster_resources().get("GPU", 0))
    finally:
        if started:
            ray.shutdown()
        sys.stdout.flush()


@contextmanager
def quiet_train() -> Iterator[None]:
    """Ray Train's own announcements go to its log files for the block; the stage tells its
    progress.
    """
    import logging

    names = ("ray.train", "ray.data", "ray")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
