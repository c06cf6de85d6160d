"""Ray: one place that starts or joins it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def connect() -> Iterator[int]:
    """A Ray cluster for the block, yielding its number of GPUs.

    Joins the one at ``RAY_ADDRESS``, else starts a local one on loopback and stops it at the end. Workers
    import this checkout: its folder goes first on their path.
    """
    import ray

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    started = not ray.is_initialized()
    if started:
        paths = os.pathsep.join([str(Path.cwd()), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        local = {} if address else {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}},
            **local,
        )
    try:
        yield int(ray.cluster_resources().get("GPU", 0))
    finally:
        if started:
            ray.shutdown()
        sys.stdout.flush()


@contextmanager
def quiet_train() -> Iterator[None]:
    """Ray Train's own announcements go to its log files for the block; the stage tells its progress itself."""
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
