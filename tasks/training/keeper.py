"""Files of the driver's project for workers that cannot see them, through Ray's object store."""

from __future__ import annotations

import hashlib
import shutil
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from tasks.utils.atomic import fsync_path, put, sha256_file, temporary_beside

CHUNK = 8 * 2**20  # bytes of an object
AHEAD = 4  # objects on their way to a worker


@dataclass(frozen=True)
class Entry:
    """A file below the project's folder."""

    name: str
    bytes: int


class Keeper:
    """Reads and writes the project's folder for workers that lack it; an actor on the driver's
    node.
    """

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def has(self, name: str) -> bool:
        return (self.root / name).exists()

    def files(self, name: str) -> list[Entry]:
        """The files of a folder, or the file; none where there is neither. Links are followed:
        they lead into DVC's cache.
        """
        place = self.root / name
        found = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
        return [Entry(p.relative_to(self.root).as_posix(), p.stat().st_size) for p in found]

    def read(self, name: str, start: int) -> bytes:
        """At most CHUNK bytes of a file."""
        with (self.root / name).open("rb") as file:
            file.seek(start)
            return file.read(CHUNK)

    def begin(self, name: str) -> str:
        """A place for something that will replace `name`, as a whole."""
        place = temporary_beside(self._inside(name))
        place.parent.mkdir(parents=True, exist_ok=True)
        return place.relative_to(self.root).as_posix()

    def write(self, name: str, start: int, content: bytes) -> None:
        """Some bytes of a file from `start` on, the same whenever it is asked again."""
        path = self._inside(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.seek(start)
            file.write(content)
            file.truncate()

    def finish(self, begun: str, name: str, sums: dict[str, str]) -> None:
        """Let what was written to `begun` replace `name`; ``sums``: SHA-256 by path below it, of a
        single file by "". RuntimeError if the files have others.
        """
        new, dest = self._inside(begun), self._inside(name)
        if not new.exists() and dest.exists():
            return  # asked again after it was done
        for below, wanted in sums.items():
            path = new / below if below else new
            if sha256_file(path) != wanted:
                raise RuntimeError(f"{path}: not what was sent")
            fsync_path(path)
        put(new, dest)

    def remove(self, name: str) -> None:
        shutil.rmtree(self._inside(name), ignore_errors=True)

    def _inside(self, name: str) -> Path:
        path = self.root / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise ValueError(f"{name}: not below the project's folder")
        return path


def fetch(keeper: Any, name: str, into: Path, top: str = ".") -> None:
    """The driver's file or folder ``name`` below ``into``, which stands for its folder ``top``.

    RuntimeError if a file changes meanwhile.
    """
    for entry in ray.get(keeper.files.remote(name)):
        path = into / Path(entry.name).relative_to(top)
        path.parent.mkdir(parents=True, exist_ok=True)
        starts, coming = deque(range(0, entry.bytes, CHUNK)), deque[Any]()
        with path.open("wb") as file:
            while starts or coming:
                while starts and len(coming) < AHEAD:
                    coming.append(keeper.read.remote(entry.name, starts.popleft()))
                file.write(ray.get(coming.popleft()))
        if path.stat().st_size != entry.bytes:
            raise RuntimeError(f"{entry.name}: it changed while a worker fetched it; run again")


def send(keeper: Any, made: Path, name: str) -> None:
    """Put the file or folder ``made`` at the driver's ``name``, as a whole."""
    files = [made] if made.is_file() else sorted(p for p in made.rglob("*") if p.is_file())
    begun, sums = ray.get(keeper.begin.remote(name)), {}
    for path in files:
        below = "" if path == made else path.relative_to(made).as_posix()
        target, start, digest = "/".join(filter(None, (begun, below))), 0, hashlib.sha256()
        with path.open("rb") as file:
            # an empty file is written as well
            while (content := file.read(CHUNK)) or not start:
                digest.update(content)
                ray.get(keeper.write.remote(target, start, content))
                start += len(content) or 1
        sums[below] = digest.hexdigest()
    ray.get(keeper.finish.remote(begun, name, sums))
