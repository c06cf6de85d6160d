"""Files and folders that appear whole or not at all.

Everything is written beside its destination (same file system) and renamed, so that a killed
process leaves either the old content or the new. Leftovers of dead processes are removed by the
next writer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.utils.failpoints import reach

logger = logging.getLogger(__name__)
MANY = 500
# Of folders with more files: the time on the monotonic clock before which they are not listed.
_next_listing: dict[Path, float] = {}


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Flush a file or a folder entry to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, replacing it in one step; parent folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path)
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        reach("atomic.file")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def atomic_write_text(path: Path, content: str) -> None:
    """Write UTF-8 text to `path` in one step."""
    atomic_write_bytes(path, content.encode())


def atomic_write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON; NaN and infinity are refused with ValueError, as JSON has
    neither.
    """
    atomic_write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any | None:
    """What `atomic_write_json` wrote; None if there is no such file. A damaged one is named in a
    warning and removed, so that it is made again.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        logger.warning("%s is damaged and will be made again", path)
        path.unlink()
        return None


@contextmanager
def atomic_dir(dest: Path) -> Iterator[Path]:
    """Yield an empty folder beside `dest` that becomes `dest` when the block ends without an
    exception.

    A folder already at `dest` is replaced; on an exception it stays as it was and the new one is
    removed.
    """
    dest.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(dest)
    temporary = temporary_beside(dest)
    temporary.mkdir()
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            if not path.is_symlink():
                fsync_path(path)
        fsync_path(temporary)
        reach("atomic.folder")
        put(temporary, dest)
        reach("atomic.done")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_stale(dest: Path) -> None:
    """Remove temporary files and folders beside `dest` whose process, on this machine, has ended.

    A folder of many files is not listed at every call: its listings take at most a twentieth of a
    process's time.
    """
    folder, start = dest.parent, time.monotonic()
    if start < _next_listing.get(folder, start):
        return
    names = os.listdir(folder)
    for name in names:
        left, _, tail = name.rpartition(".tmp-")
        node, pid, *_ = [*tail.split("-"), "", ""]
        ours = left.startswith(".") and node == _node() and pid.isdigit()
        if not ours or _alive(int(pid)):
            continue
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if len(names) > MANY:
        now = time.monotonic()
        _next_listing[folder] = now + 20 * (now - start)


def temporary_beside(dest: Path) -> Path:
    """A new name beside `dest` for what is to become it; :func:`remove_stale` knows such names."""
    return dest.with_name(f".{dest.name}.tmp-{_node()}-{os.getpid()}-{secrets.token_hex(4)}")


def put(new: Path, dest: Path) -> None:
    """Let the finished file or folder `new`, a temporary one beside `dest`, become `dest`, in one
    step of a file, and of a folder where there was none.
    """
    if new.is_file() or not dest.exists():
        new.rename(dest)
    else:
        old = temporary_beside(dest)
        dest.rename(old)
        reach("atomic.between")
        try:
            new.rename(dest)
        except OSError:
            old.rename(dest)
            raise
        shutil.rmtree(old, ignore_errors=True)
    fsync_path(dest.parent)


def _node() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
