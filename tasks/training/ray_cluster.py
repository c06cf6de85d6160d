"""Ray: one place that starts or joins it."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.common.errors import InputError
from tasks.utils.environment import ray_settings, thread_settings
from tasks.utils.spinning import watch_cores

if TYPE_CHECKING:
    from tasks.training.node_folder import ProjectFolder

CHECKOUT = Path(__file__).resolve().parents[2]
CODE = ("models", "tasks")  # of it, all that a worker runs
# The path of a Unix socket holds 103 bytes on macOS, 107 on Linux; below the folder for temporary
# files Ray needs "/ray/session_2026-11-25_16-27-44_123456_1234567/sockets/plasma_store".
LONGEST_PLACE = 103 - 68
SHORT_PLACES = ("/tmp", "/var/tmp", "/dev/shm")
ATTEMPTS = 4  # of a job whose actor is lost each time
HEAD_SECONDS = 45.0

logger = logging.getLogger(__name__)


@contextmanager
def connect(workers: int | None = None) -> Iterator[int]:
    """A Ray cluster for the block, yielding its number of GPUs.

    Joins the one at ``RAY_ADDRESS``, else starts a local one on loopback, with room for
    ``workers`` whatever the number of cores, and stops it at the end; another cluster on this
    machine is left alone. A joined one whose head is lost ends this process, by one line. The
    local one asks for a token that this process alone has: Ray runs any code it is sent, and
    loopback is open to every user of the machine. Workers import this checkout: a joined cluster
    gets a copy of its code, since nodes may have none or another. Raises InputError if the cluster
    at ``RAY_ADDRESS`` does not answer.
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
        code = {"py_modules": [str(CHECKOUT / name) for name in CODE]} if address else {}
        try:
            ray.init(
                # Without an address Ray joins whatever cluster a file in its temporary folder
                # names, be it alive or not.
                address=address or "local",
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={
                    "env_vars": variables | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
                    **code,
                },
                **({} if address else _own_cluster(workers)),
            )
        except ConnectionError as error:
            raise InputError(
                f"RAY_ADDRESS = {address}: no Ray cluster answers there ({_first_line(error)}); "
                "start it, or unset RAY_ADDRESS to use this machine alone"
            ) from error
    try:
        with _head_watched(address if started else None, ray.get_runtime_context().gcs_address):
            yield int(ray.cluster_resources().get("GPU", 0))
    finally:
        if started:
            ray.shutdown()
        sys.stdout.flush()


@contextmanager
def _head_watched(address: str | None, head: str) -> Iterator[None]:
    """While the block runs, end this process by one line if nothing listens at `head` for
    HEAD_SECONDS: Ray itself ends it after 60, with a message of its own. None: no joined cluster.

    Work that is done before that is done: workers need the head to start, not to work.
    """
    if address is None:
        yield
        return
    over = threading.Event()
    host, _, port = head.rpartition(":")

    def watch() -> None:
        seen = time.monotonic()
        while not over.wait(HEAD_SECONDS / 15):
            try:
                socket.create_connection((host, int(port)), timeout=HEAD_SECONDS / 15).close()
                seen = time.monotonic()
            except OSError:
                if time.monotonic() - seen > HEAD_SECONDS:
                    print(
                        f"error: the Ray cluster at {head} (RAY_ADDRESS = {address}) has lost its "
                        "head; start the cluster again, then run the same command: what is "
                        "finished is kept",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(1)  # as Ray would; calls to a cluster without a head may never return

    watcher = threading.Thread(target=watch, name="ray-head", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()


@contextmanager
def folder_for(root: Path, needs: Sequence[str]) -> Iterator[ProjectFolder]:
    """The project's folder for the workers of the cluster that this process is connected to; see
    :func:`tasks.training.node_folder.offered`.
    """
    from tasks.training.node_folder import ProjectFolder, offered

    if not os.environ.get("RAY_ADDRESS"):  # all workers are on this machine
        yield ProjectFolder(str(root))
        return
    with offered(root, needs) as folder:
        yield folder


def workers_with_room(wanted: int, fewer: Sequence[int] = ()) -> int:
    """`wanted`, or the largest of `fewer` if the joined cluster has no room for that many now: a
    CPU each, or a GPU where it has any.

    Without fewer ones it says what will be waited for. The waiting is Ray's, whose demand makes a
    cluster grow that can.
    """
    import ray

    there = ray.cluster_resources()
    kind = "GPU" if there.get("GPU") else "CPU"
    room = int(there.get(kind, 0))
    if room >= wanted:
        return wanted
    lacking = f"the Ray cluster has room for {room} of {wanted} workers ({room} {kind}s)"
    if found := max((number for number in fewer if number <= room), default=0):
        logger.warning("%s: going on with %d", lacking, found)
        return found
    logger.warning("%s: waiting until it has more; add a node, or ask for fewer workers", lacking)
    return wanted


def actor_class(kind: type, gpus: int) -> Any:
    """`kind` as Ray's actors, on a GPU each where the cluster has any, else on a CPU each."""
    import ray

    options: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    return ray.remote(**options)(kind)


def use_worker_threads() -> None:
    """Give this process, one of Ray's workers, FEWSTEP_WORKER_THREADS threads, one where that is
    not set; on a GPU nothing changes.
    """
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, int(os.environ.get("FEWSTEP_WORKER_THREADS", "1"))))
        watch_cores()


def spread(start: Callable[[], Any], workers: int, jobs: Sequence[Any]) -> Iterator[Any]:
    """Results of ``actor.make(job)`` on `workers` actors, as they come; see Actors."""
    yield from Actors(start, workers).make(jobs)


class Actors:
    """At most `workers` actors, each begun by ``start()``, with one job at a time on each.

    Jobs go to actors that have started: a cluster with room for fewer does with fewer. An actor
    that is lost, with its node perhaps, is replaced, and its job done again, up to ATTEMPTS times.
    Actors stay from one ``make`` to the next; what they have loaded is loaded once.
    """

    def __init__(self, start: Callable[[], Any], workers: int) -> None:
        self.start, self.workers = start, workers
        self.starting: dict[Any, Any] = {}  # actors by the reference that tells of their start
        self.idle: list[Any] = []

    def make(self, jobs: Sequence[Any]) -> Iterator[Any]:
        """Results of ``actor.make(job)`` as they come, in any order.

        Raises what the job raises, or RayActorError for an actor that cannot begin or was lost too
        often. An iterator that is not read to its end leaves its actors at work: begin no other.
        """
        import ray
        from ray.exceptions import RayActorError

        waiting, tries = deque(range(len(jobs))), Counter[int]()
        at_work: dict[Any, tuple[Any, int]] = {}  # actor and job's number by the result's reference
        while len(self.starting) + len(self.idle) < min(self.workers, len(jobs)):
            self._begin()
        while waiting or at_work:
            while waiting and self.idle:
                free, number = self.idle.pop(), waiting.popleft()
                at_work[free.make.remote(jobs[number])] = free, number
            (done,), _ = ray.wait([*at_work, *self.starting], num_returns=1)
            begun = done in self.starting
            actor, number = (self.starting.pop(done), -1) if begun else at_work.pop(done)
            try:
                made = ray.get(done)
            except RayActorError as error:
                tries[number] += 1
                if error.actor_init_failed or tries[number] >= ATTEMPTS:
                    raise
                if number >= 0:
                    logger.warning("a Ray worker was lost; its work is done again")
                    waiting.appendleft(number)
                self._begin()
                continue
            self.idle.append(actor)
            if number >= 0:
                yield made

    def _begin(self) -> None:
        actor = self.start()
        self.starting[actor.__ray_ready__.remote()] = actor


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
