"""Ray: one place that starts or joins it."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.common.errors import InputError
from tasks.utils.environment import ray_settings, thread_settings

CHECKOUT = Path(__file__).resolve().parents[2]
# The path of a Unix socket holds 103 bytes on macOS, 107 on Linux; below the folder for temporary
# files Ray needs "/ray/session_2026-11-25_16-27-44_123456_1234567/sockets/plasma_store".
LONGEST_PLACE = 103 - 68
SHORT_PLACES = ("/tmp", "/var/tmp", "/dev/shm")
ATTEMPTS = 4  # of a job whose actor is lost each time

logger = logging.getLogger(__name__)


@contextmanager
def connect(workers: int | None = None) -> Iterator[int]:
    """A Ray cluster for the block, yielding its number of GPUs.

    Joins the one at ``RAY_ADDRESS``, else starts a local one on loopback, with room for ``workers``
    whatever the number of cores, and stops it at the end; another cluster on this machine is left
    alone. The local one asks for a token that this process alone has: Ray runs any code it is sent,
    and loopback is open to every user of the machine. Workers import this checkout: its folder goes
    first on their path. Raises InputError if the cluster at ``RAY_ADDRESS`` does not answer.
    """
    for name, value in ray_settings(os.environ).items():
        os.environ.setdefault(name, value)
    import ray  # reads them

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    started = not ray.is_initialized()
    if started:
        paths = os.pathsep.join(
            [str(CHECKOUT), str(Path.cwd()), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        )
        threads = thread_settings(os.environ)
        variables = {name: os.environ.get(name, value) for name, value in threads.items()}
        try:
            ray.init(
                # Without an address Ray joins whatever cluster a file in its temporary folder
                # names, be it alive or not.
                address=address or "local",
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": variables | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}},
                **({} if address else _own_cluster(workers)),
            )
        except ConnectionError as error:
            raise InputError(
                f"RAY_ADDRESS = {address}: no Ray cluster answers there ({_first_line(error)}); "
                "start it, or unset RAY_ADDRESS to use this machine alone"
            ) from error
    try:
        yield int(ray.cluster_resources().get("GPU", 0))
    finally:
        if started:
            ray.shutdown()
        sys.stdout.flush()


def spread(start: Callable[[], Any], workers: int, jobs: Sequence[Any]) -> Iterator[Any]:
    """Results of ``actor.make(job)`` on `workers` actors, one job at a time on each, as they come.

    Jobs go to actors that have started: a cluster with room for fewer does with fewer. An actor
    that is lost, with its node perhaps, is replaced, and its job done again, up to ATTEMPTS times.
    """
    import ray
    from ray.exceptions import RayActorError

    waiting, tries = deque(range(len(jobs))), Counter[int]()
    starting: dict[Any, Any] = {}  # actors by the reference that tells of their start
    at_work: dict[Any, tuple[Any, int]] = {}  # and with the job's number, by that of its result
    idle: list[Any] = []

    def begin() -> None:
        actor = start()
        starting[actor.__ray_ready__.remote()] = actor

    for _ in range(min(workers, len(jobs))):
        begin()
    while waiting or at_work:
        while waiting and idle:
            free, number = idle.pop(), waiting.popleft()
            at_work[free.make.remote(jobs[number])] = free, number
        (done,), _ = ray.wait([*at_work, *starting], num_returns=1)
        actor, number = (starting.pop(done), -1) if done in starting else at_work.pop(done)
        try:
            made = ray.get(done)
        except RayActorError as error:
            tries[number] += 1
            if error.actor_init_failed or tries[number] >= ATTEMPTS:
                raise
            if number >= 0:
                logger.warning("a Ray worker was lost; its work is done again")
                waiting.appendleft(number)
            begin()
            continue
        idle.append(actor)
        if number >= 0:
            yield made


def _own_cluster(workers: int | None) -> dict[str, Any]:
    alone = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "num_cpus": workers}
    place = temporary_place()
    return alone if place is None else alone | {"_temp_dir": str(place)}


def temporary_place() -> Path | None:
    """A folder for Ray's sockets; None: its own choice will do.

    A long TMPDIR, as batch systems set, leaves no room for a socket's path. Raises InputError if
    there is no short folder that can be written.
    """
    chosen = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(chosen)) <= LONGEST_PLACE:
        return None
    for name in SHORT_PLACES:
        if os.access(name, os.W_OK | os.X_OK):
            return Path(name) / f"ray-{os.getuid()}"
    raise InputError(
        f"{chosen}: too long for Ray's sockets (longest: {LONGEST_PLACE} bytes), and none of "
        f"{', '.join(SHORT_PLACES)} can be written; set RAY_TMPDIR to a short folder"
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def quiet_train() -> Iterator[None]:
    """Ray Train's own announcements go to its log files for the block; the stage tells its
    progress.
    """
    names = ("ray.train", "ray.data", "ray")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
