"""From prompts one by one to those that are used: distinct, chosen, split, on disk.

Memory is about 100 bytes for every distinct prompt, whatever their length: the texts lie in a file.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from models.common.errors import InputError
from tasks.data.prompts.base import KEY, Prompt, PromptSource

if TYPE_CHECKING:
    from tasks.config.conditions import Conditions

TOLD = 3  # places named of those left out

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collected:
    """The prompts that are used, one JSON text a line in ``file``: first ``train`` of training,
    then ``holdout`` held out. ``counts``: what became of all that were read; ``sha256``: of the
    file.
    """

    title: str
    file: Path
    train: int
    holdout: int
    counts: dict[str, int]
    sha256: str


@dataclass
class _Found:
    """Distinct prompts so far: ``offsets`` of their lines in the file."""

    file: IO[bytes]
    seen: set[bytes] = field(default_factory=set)
    offsets: list[int] = field(default_factory=list)
    read: int = 0
    empty: list[str] = field(default_factory=list)
    empties: int = 0
    again: int = 0

    def add(self, prompts: Iterable[Prompt]) -> None:
        for prompt in prompts:
            self.read += 1
            if not prompt.text:
                self.empties += 1
                self.empty += [prompt.place] if len(self.empty) < TOLD else []
                continue
            # 128 bits: two different prompts are never taken for one
            digest = hashlib.blake2b(prompt.text.encode(), digest_size=16).digest()
            if digest in self.seen:
                self.again += 1
                continue
            self.seen.add(digest)
            self.offsets.append(self.file.tell())
            self.file.write(json.dumps(prompt.text, ensure_ascii=False).encode() + b"\n")


def collect(source: PromptSource, settings: Conditions, folder: Path) -> Collected:
    """Write the prompts that are used to ``folder``/prompts.jsonl.

    What is left out is counted in a line each. The order is random by ``conditions.seed``: files
    are often sorted, and trajectories take prompts from the beginning. Raises InputError where too
    few are left.
    """
    spool = folder / "distinct.jsonl"
    with spool.open("wb") as file:
        found = _Found(file)
        found.add(source.prompts)
        first = len(found.offsets)
        if source.held_out is not None:
            found.add(source.held_out)
    _tell(source.title, found, settings)
    train, holdout = _choose(first, found, source, settings)
    with spool.open("rb") as file:
        made = _write(
            file, folder / "prompts.jsonl", [found.offsets[i] for i in (*train, *holdout)]
        )
    spool.unlink()
    counts = {
        "read": found.read,
        "empty": found.empties,
        "repeated": found.again,
        "distinct": len(found.offsets),
        "used": len(train) + len(holdout),
    }
    return Collected(source.title, folder / "prompts.jsonl", len(train), len(holdout), counts, made)


def _tell(title: str, found: _Found, settings: Conditions) -> None:
    if found.empties:
        more = ", ..." if found.empties > TOLD else ""
        where = f"{found.empties:,} of {found.read:,} prompts are empty: "
        where += ", ".join(found.empty) + more
        if settings.empty == "refuse":
            raise InputError(f"{KEY}: {title}: {where}; remove them, or set conditions.empty=skip")
        logger.warning("%s: left out: %s", title, where)
    if found.again:
        what = "%s: %s of %s prompts repeat others and are encoded once"
        logger.warning(what, title, f"{found.again:,}", f"{found.read:,}")


def _choose(
    first: int, found: _Found, source: PromptSource, settings: Conditions
) -> tuple[Sequence[int], Sequence[int]]:
    """Numbers of the distinct prompts of training and of those held out, in random order."""
    count, generator = len(found.offsets), np.random.default_rng(settings.seed)
    if not count:
        raise InputError(f"{KEY}: {source.title} has no prompts, expected one or more")
    limit = count if settings.limit is None else settings.limit
    if count > limit:
        what = "%s: %s of %s distinct prompts are used (conditions.limit), chosen at random"
        logger.warning(what, source.title, f"{limit:,}", f"{count:,}")
    if source.held_out is not None:
        share = min(1.0, limit / count)
        train = generator.permutation(first)[: max(1, round(share * first))]
        held = first + generator.permutation(count - first)
        held = held[: min(len(held), max(0, limit - len(train)))]
        if not len(held):
            what = "%s: no held-out caption that is none of training: evaluation uses those"
            logger.warning(what, source.title)
        return train.tolist(), held.tolist()
    if settings.holdout >= min(count, limit):
        raise InputError(
            f"conditions.holdout = {settings.holdout}: expected fewer than the "
            f"{min(count, limit):,} distinct prompts of {source.title}"
        )
    order = generator.permutation(count)[:limit].tolist()
    return order[settings.holdout :], order[: settings.holdout]


def _write(spool: IO[bytes], target: Path, offsets: Sequence[int]) -> str:
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for line in _lines(spool, offsets):
            digest.update(line)
            file.write(line)
    return digest.hexdigest()


def _lines(spool: IO[bytes], offsets: Sequence[int]) -> Iterator[bytes]:
    for offset in offsets:
        spool.seek(offset)
        yield spool.readline()
