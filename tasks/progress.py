"""Progress of long stages: a bar on a terminal, a log line now and then anywhere else."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Protocol, TypeVar

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

logger = logging.getLogger("tasks.progress")
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

    `total` None means that the end is unknown. On a terminal (stderr) a bar with rate and time left is drawn;
    otherwise one log line (level INFO, logger `tasks.progress`) at most every 10 s, and one at the end.
    """
    if sys.stderr.isatty():
        with _bar(description, total) as advance:
            yield advance
    else:
        lines = _Lines(description, total)
        yield lines
        lines.finish()


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
    pairs = (f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in fields.items())
    return " ".join(pairs)
