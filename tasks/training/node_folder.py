"""The project's folder, for Ray workers on nodes that do not have it.

The driver leaves a mark in its folder. A worker that finds the mark uses the folder itself. One
that does not fetches what its stage needs through Ray's object store, into a folder for temporary
files of its own node, and sends back what it makes. Workers of a node share one copy, which the
next stage there removes once none of them is left.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from models.common.errors import InputError
from tasks.training.keeper import AHEAD, Keeper, fetch, send

ATTEMPTS = 3  # to send one thing, if the process that takes it dies
NEWS_SECONDS = 1.0
WHOLE = ".whole"
SEAL = "checkpoint.json"  # as in tasks.training.checkpoints, whose torch a keeper need not load

_held: dict[Path, IO[bytes]] = {}  # locks of this process on the copies that it uses


@dataclass(frozen=True)
class ProjectFolder:
    """What the driver gives its workers: the folder, its mark, the names that they need, and the
    keeper; no keeper where all workers are on the driver's machine.
    """

    root: str
    mark: str = ""
    needs: tuple[str, ...] = ()
    keeper: Any = None

    def open(self) -> NodeFolder:
        """The folder on this node, its needs fetched if it is a copy."""
        root = Path(self.root)
        if self.keeper is None or (root / self.mark).is_file():
            return NodeFolder(root, root)
        copy = _place() / Path(self.mark).name
        if copy in _held:
            return NodeFolder(root, copy, self.keeper)
        _remove_unused(copy)
        while (lock := _whole(copy)) is None:
            # Not waited for: whoever finds the copy whole meanwhile keeps its lock to its end.
            with suppress(BlockingIOError), _lock(copy, fcntl.LOCK_EX | fcntl.LOCK_NB):
                for name in self.needs:
                    fetch(self.keeper, name, copy)
                copy.mkdir(exist_ok=True)
                (copy / WHOLE).touch()
        _held[copy] = lock
        sys.path.insert(0, str(copy))  # extensions are modules of the project's folder
        return NodeFolder(root, copy, self.keeper)


@dataclass(frozen=True)
class NodeFolder:
    """The project's folder as a worker has it: ``root``, the driver's own or a copy of a part."""

    project: Path  # where the driver has it
    root: Path
    keeper: Any = None  # of a copy

    @property
    def copied(self) -> bool:
        """Whether the worker does not have the folder itself."""
        return self.keeper is not None

    @contextmanager
    def made(self, path: Path) -> Iterator[Path]:
        """A place to make the driver's ``path`` at: it is sent, and removed here, when the block
        ends.
        """
        here = self.root / self._name(path)
        yield here
        if self.copied:
            self.send(here, path)
            shutil.rmtree(here)

    def fetch(self, path: Path, into: Path) -> None:
        """Let ``into`` have what is in the driver's folder ``path`` now, and nothing else."""
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir(parents=True)
        fetch(self.keeper, name := self._name(path), into, name)

    def send(self, made: Path, path: Path) -> None:
        """Put the file or folder ``made`` at the driver's ``path``, as a whole."""
        for left in reversed(range(ATTEMPTS)):
            try:
                send(self.keeper, made, self._name(path))
                return
            except (RayActorError, RayTaskError):
                if not left:
                    raise

    def remove(self, path: Path) -> None:
        """Remove the driver's folder at ``path``."""
        ray.get(self.keeper.remove.remote(self._name(path)))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.project).as_posix()


class Mirror:
    """A worker's own place for the driver's folder ``path``: ``here``, which is ``path`` itself
    where the worker has that; else a copy of what is there now, below the node's copy in ``into``.
    """

    def __init__(self, node: NodeFolder, path: Path, into: str) -> None:
        self.node, self.path, self.here = node, path, path
        self.sent: dict[str, int] = {}  # by name, the time of the last change
        if self.node.copied:
            self.here = node.root / into
            node.fetch(path, self.here)
            self.sent = {name: _changed(place) for name, place in self._entries()}

    def publish(self) -> None:
        """Let the driver have what is new here, the kept weights first, then checkpoints, then
        files; what is gone here is removed there.
        """
        if not self.node.copied:
            return
        now = self._entries()
        for name, place in now:
            if self.sent.get(name) != (changed := _changed(place)):
                self.node.send(place, self.path / name)
                self.sent[name] = changed
        for name in self.sent.keys() - {name for name, _ in now}:
            self.node.remove(self.path / name)
            del self.sent[name]

    @contextmanager
    def telling(self, name: str) -> Iterator[None]:
        """Within the block, send the small file ``name`` now and then, when it has changed."""
        if not self.node.copied:
            yield
            return
        over = threading.Event()

        def tell() -> None:
            last = 0
            while not over.wait(NEWS_SECONDS):
                with suppress(OSError, RayError):  # the next news will do
                    if (changed := _changed(self.here / name)) != last:
                        self.node.send(self.here / name, self.path / name)
                        last = changed

        teller = threading.Thread(target=tell, name="news", daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join()

    def _entries(self) -> list[tuple[str, Path]]:
        """What appears as a whole, by name: folders within folders, checkpoints, files."""
        inside = _visible(self.here)
        whole = [p for p in inside if p.is_dir() and (p / SEAL).is_file()]
        groups = [p for p in inside if p.is_dir() and p not in whole]
        nested = [p for group in groups for p in _visible(group)]
        found = [*nested, *whole, *(p for p in inside if p.is_file())]
        return [(p.relative_to(self.here).as_posix(), p) for p in found]


@contextmanager
def offered(root: Path, needs: Sequence[str]) -> Iterator[ProjectFolder]:
    """The project's folder for workers of a cluster that others have started and this process is
    connected to; ``needs``: what they read, names below it, which need not exist.

    Raises InputError if the node of this process does not have the folder.
    """
    mark = Path(".fewstep") / "ray" / f"mark-{secrets.token_hex(8)}"
    (root / mark).parent.mkdir(parents=True, exist_ok=True)
    (root / mark).touch()
    node = ray.get_runtime_context().get_node_id()
    here = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "max_concurrency": AHEAD}
    keeper = ray.remote(**options)(Keeper).options(scheduling_strategy=here).remote(str(root))
    try:
        if not ray.get(keeper.has.remote(mark.as_posix())):
            raise InputError(
                f"{root}: the Ray node on this machine does not see this folder, expected the "
                "project; run `ray start` where the project's folder is"
            )
        yield ProjectFolder(str(root), mark.as_posix(), tuple(needs), keeper)
    finally:
        (root / mark).unlink(missing_ok=True)
        ray.kill(keeper)


def _visible(folder: Path) -> list[Path]:
    """What is in the folder but for what is being written."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns


def _place() -> Path:
    """This user's folder for copies on this node."""
    place = Path(tempfile.gettempdir()) / f"fewstep-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    if place.is_symlink() or place.stat().st_uid != os.getuid():
        raise InputError(f"{place}: it belongs to another user; set TMPDIR to a folder of your own")
    return place


def _lock(copy: Path, kind: int) -> IO[bytes]:
    path = copy.with_name(f"{copy.name}.lock")
    while True:
        file = path.open("wb")
        try:
            fcntl.flock(file, kind)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass  # another stage has just removed the copy and its lock
        except BlockingIOError:
            file.close()
            raise
        file.close()


def _whole(copy: Path) -> IO[bytes] | None:
    """A lock that keeps the copy from being removed; None if it is not whole. Waits for whoever is
    fetching it.
    """
    lock = _lock(copy, fcntl.LOCK_SH)
    if (copy / WHOLE).is_file():
        return lock
    lock.close()
    return None


def _remove_unused(own: Path) -> None:
    """Remove the copies of earlier stages that no process uses any more, killed ones included."""
    for lock_file in own.parent.glob("mark-*.lock"):
        copy = lock_file.with_suffix("")
        if copy == own or copy in _held:
            continue
        with suppress(BlockingIOError), _lock(copy, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(copy, ignore_errors=True)
            lock_file.unlink(missing_ok=True)
