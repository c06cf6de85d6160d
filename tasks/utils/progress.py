"""Progress of long stages: a bar on a terminal, a log line now and then anywhere else."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LOG_EVERY_SECONDS = 10.0
NOTE_SECONDS = 0.5

_told: ContextVar[Path | None] = ContextVar("told", default=None)

logger = logging.getLogger("tasks.utils.progress")
Item = TypeVar("Item")


class Advance(Protocol):
    """Report `n` more units done; `fields` (such as loss=0.1) are shown beside the rate."""

    def __call__(self, n: int = 1, **fields: object) -> None: ...


def track(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items of `iterable` while showing progress; `total` is taken from its length."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with progress(description, total) as advance:
        for item in iterable:
            yield item
            advance()


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Advance]:
    """Show progress for the block and yield the function that advances it.

    `total` None means that the end is unknown. On a terminal (stderr) a bar with rate and time left
    is drawn; otherwise one log line (level INFO, logger `tasks.utils.progress`) at most every 10 s,
    and one at the end.
    """
    if place := _told.get():
        note = _Note(place, description, total)
        yield note
        note.write()
    elif sys.stderr.isatty():
        with _bar(description, total) as advance:
            yield advance
    else:
        lines = _Lines(description, total)
        yield lines
        lines.finish()


@contextmanager
def report_progress_to(place: Path) -> Iterator[None]:
    """Within the block, write progress into the file `place` for the process that follows it
    there.
    """
    token = _told.set(place)
    try:
        yield
    finally:
        _told.reset(token)


@contextmanager
def followed(place: Path) -> Iterator[None]:
    """Within the block, show the progress that another process writes into the file `place`."""
    place.unlink(missing_ok=True)
    ended = threading.Event()
    follower = threading.Thread(target=_follow, args=(place, ended), daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()
        place.unlink(missing_ok=True)


def _follow(place: Path, ended: threading.Event) -> None:
    shown: tuple[str, int | None] | None = None
    done = 0
    with ExitStack() as stack:
        advance: Advance | None = None
        last_look = False
        while not last_look:
            last_look = ended.wait(NOTE_SECONDS)
            if (note := _read(place)) is None:
                continue
            if (
                advance is None
                or (note["description"], note["total"]) != shown
                or note["done"] < done
            ):
                stack.close()  # the next part, or the same again after a worker was lost
                shown, done = (note["description"], note["total"]), 0
                advance = stack.enter_context(progress(*shown))
            if note["done"] > done:
                advance(note["done"] - done, **note["fields"])
                done = note["done"]


def _read(place: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(place.read_text()))
    except (OSError, ValueError):
        return None


class _Note:
    """Progress written into a file, at most every half second."""

    def __init__(self, place: Path, description: str, total: int | None) -> None:
        self.place, self.last = place, 0.0
        self.content: dict[str, Any] = {
            "description": description,
            "total": total,
            "done": 0,
            "fields": {},
        }

    def __call__(self, n: int = 1, **fields: object) -> None:
        self.content["done"] += n
        self.content["fields"].update({name: str(value) for name, value in fields.items()})
        if time.monotonic() - self.last >= NOTE_SECONDS:
            self.write()

    def write(self) -> None:
        self.last = time.monotonic()
        part = self.place.with_name(f"{self.place.name}.part")
        part.write_text(json.dumps(self.content))
        part.replace(self.place)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g}/s")


@contextmanager
def _bar(description: str, total: int | None) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, shown="")

        def advance(n: int = 1, **fields: object) -> None:
            bar.advance(task, n)
            if fields:
                bar.update(task, shown=_shown(fields))

        yield advance


class _Lines:
    def __init__(self, description: str, total: int | None) -> None:
        self.description, self.total = description, total
        self.done = 0
        self.fields: dict[str, object] = {}
        self.start = self.last = time.monotonic()

    def __call__(self, n: int = 1, **fields: object) -> None:
        self.done += n
        self.fields.update(fields)
        now = time.monotonic()
        if now - self.last >= LOG_EVERY_SECONDS:
            self.last = now
            logger.info("%s", self.line(now))

    def line(self, now: float) -> str:
        rate = self.done / max(now - self.start, 1e-9)
        count = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
        parts = [f"{self.description}: {count}", f"{rate:.3g}/s"]
        if self.total is not None and 0 < self.done < self.total:
            parts.append(f"{(self.total - self.done) / rate:.0f} s left")
        return ", ".join(parts + ([_shown(self.fields)] if self.fields else []))

    def finish(self) -> None:
        now = time.monotonic()
        logger.info("%s, done in %.1f s", self.line(now), now - self.start)


def _shown(fields: dict[str, object]) -> str:
    pairs = (
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in fields.items()
    )
    return " ".join(pairs)
