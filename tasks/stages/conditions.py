"""Conditions stage: the prompts of a text-to-image teacher, encoded once, into data/conditions.

Later stages read embeddings; the encoders are opened here alone. For a teacher that takes no
prompts an empty manifest is written.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tasks.utils import environment

if __name__ == "__main__":  # OpenMP reads its settings when torch is imported
    environment.prepare(Path.cwd())

import numpy as np

from models.common.errors import InputError
from tasks.config.conditions import Conditions
from tasks.config.schema import Params
from tasks.data.conditions import NULL, PROMPTS, ROWS, PromptFile, name_of
from tasks.data.prompts import Collected, collect, open_prompts
from tasks.data.shards import publish, usable_shard, write_shard
from tasks.utils.cli import stage_main
from tasks.utils.failpoints import reach
from tasks.utils.locks import scratch_lock
from tasks.utils.progress import Advance, progress
from tasks.utils.scratch import scratch_for

CHECKED = 1024  # prompts whose tokens are counted at once

logger = logging.getLogger(__name__)


def run(params: Params, root: Path) -> None:
    """Write data/conditions; shards finished before a kill are kept in the scratch folder and
    used. Raises InputError for prompts that cannot be used.
    """
    settings, record = params.conditions, teacher_record(root)
    kind = str(record["condition_kind"])
    destination = root / "data" / "conditions"
    if kind != "prompts":
        if settings.prompts is not None:
            raise InputError(
                f"conditions.prompts = {settings.prompts}: this teacher takes "
                f"{'no prompts' if kind == 'none' else f'{kind}, no prompts'}; use null"
            )
        publish(root, destination, {"kind": kind}, {})
        print(f"conditions: this teacher takes {kind}; nothing to encode")
        return
    with TemporaryDirectory(prefix="prompts-", dir=_place(root)) as place:
        collected = collect(open_prompts(settings, root), settings, Path(place))
        _encode_all(settings, root, collected, record)


def teacher_record(root: Path) -> dict[str, Any]:
    """data/teacher/teacher.json; raises InputError where it is missing or of an earlier version."""
    file = root / "data" / "teacher" / "teacher.json"
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        record["condition_kind"], record["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{file}: missing, damaged or of an earlier version; run python -m "
            "tasks.stages.teacher first"
        ) from None
    return record


def _place(root: Path) -> Path:
    """Beside the scratch folders, so that finished files are moved without a copy."""
    place = root / ".fewstep" / "scratch" / "conditions"
    place.mkdir(parents=True, exist_ok=True)
    return place


def _encode_all(
    settings: Conditions, root: Path, collected: Collected, record: dict[str, Any]
) -> None:
    from models.teachers.encoders import describe, open_encoders
    from tasks.utils.device import pick_device

    pipe, family = open_encoders(root / "data" / "teacher")
    encoder = Encoder(settings, pipe.to(pick_device()), family)
    identity = {
        "sha256": collected.sha256,
        "train": collected.train,
        "holdout": collected.holdout,
        "negative_prompt": settings.negative_prompt,
        "encoders": describe(pipe),
        "dtype": settings.dtype,
        "batch_size": settings.batch_size,
    }
    scratch = scratch_for(root, "conditions", identity, settings.shard_size)
    with scratch_lock(scratch):
        scratch.mkdir(parents=True, exist_ok=True)
        shutil.move(collected.file, scratch / PROMPTS)
        prompts = PromptFile(scratch / PROMPTS)
        long = encoder.check_lengths(prompts, collected.title)
        jobs = list(_jobs(scratch, collected.train + collected.holdout, settings.shard_size))
        missing = [job for job in jobs if usable_shard(job.folder) is None]
        rows = sum(job.stop - job.start for job in missing)
        with progress("conditions", rows) as advance:
            for job in missing:
                encoder.make(job, prompts, rows, advance)
                reach("conditions.shard")
        splits = {ROWS: [str(job.folder.relative_to(scratch)) for job in jobs]}
        if (null := encoder.null()) is not None:
            write_shard(scratch / NULL, null)
            splits[NULL] = [NULL]
        meta = identity | {
            "kind": "prompts",
            "source": str(settings.prompts),
            "counts": collected.counts | {"truncated": long},
            "teacher": record["fingerprint"],
        }
        meta["name"] = name_of(meta)
        publish(scratch, root / "data" / "conditions", meta, splits, [PROMPTS])
    print(
        f"conditions: {collected.train:,} prompts of training, {collected.holdout:,} held out; "
        f"{rows:,} are new"
    )


@dataclass(frozen=True)
class Job:
    """One shard to make: rows ``start`` to ``stop``, into ``folder``."""

    start: int
    stop: int
    folder: Path


def _jobs(scratch: Path, count: int, size: int) -> Iterator[Job]:
    for start in range(0, count, size):
        stop = min(start + size, count)
        yield Job(start, stop, scratch / ROWS / f"{start:08d}-{stop:08d}")


class Encoder:
    """Encodes prompts as a family does with its pipeline's encoders."""

    def __init__(self, settings: Conditions, pipe: Any, family: Any):
        self.settings, self.pipe, self.family = settings, pipe, family
        self.dtype = np.dtype(settings.dtype)

    def check_lengths(self, prompts: PromptFile, title: str) -> int:
        """How many prompts are truncated; InputError, which names the first of them, where that
        was not asked for.
        """
        from models.teachers.encoders import token_limits, too_long

        limits = token_limits(self.pipe)
        told = " and ".join(f"{limit} ({name})" for name, limit in limits.items())
        count, first, found = len(prompts), "", 0
        for low in range(0, count, CHECKED):
            texts = prompts[range(low, min(low + CHECKED, count))]
            over = too_long(self.pipe, texts, limits)
            found += sum(more > 0 for more in over)
            first = first or next((t for t, more in zip(texts, over, strict=True) if more > 0), "")
        if found and self.settings.too_long == "refuse":
            raise InputError(
                f"conditions.prompts: {found:,} of {count:,} prompts are longer than the {told} "
                f"tokens that the encoders read, such as {first[:60]!r}; shorten them, or set "
                "conditions.too_long=truncate"
            )
        if found:
            what = "%s: %s of %s prompts are truncated to %s tokens, such as %r"
            logger.warning(what, title, f"{found:,}", f"{count:,}", told, first[:60])
        return found

    def make(self, job: Job, prompts: PromptFile, rows: int, advance: Advance) -> None:
        """Write one shard; ``rows``: all that are still to be made, whose room is looked for."""
        size = self.settings.batch_size
        parts: list[dict[str, np.ndarray]] = []
        for low in range(job.start, job.stop, size):
            texts = prompts[range(low, min(low + size, job.stop))]
            # always as many at once: kernels round by batch
            filled = [*texts, *[texts[-1]] * (size - len(texts))]
            part = {name: value[: len(texts)] for name, value in self.encode(filled).items()}
            if not parts:
                self._check_room(job.folder, part, rows)
            parts.append(part)
            advance(len(texts))
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        write_shard(job.folder, whole)

    def encode(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """The condition of prompts as arrays (n, ...): embeddings in ``dtype``, masks as they
        are.
        """
        return self._stored(self.family.encode_prompts(self.pipe, prompts))

    def null(self) -> dict[str, np.ndarray] | None:
        """One row that guidance leads away from; None for teachers that have none."""
        negative = self.settings.negative_prompt
        given = () if negative is None else (negative,)
        null = self.family.encode_null(self.pipe, *given)
        if null is None and negative is not None:
            raise InputError(
                f"conditions.negative_prompt = {negative!r}: this teacher has no classifier-free "
                "guidance; use null"
            )
        return None if null is None else self._stored(null)

    def _stored(self, condition: Any) -> dict[str, np.ndarray]:
        arrays = {name: value.cpu().numpy() for name, value in condition.items()}
        return {name: self._narrowed(name, array) for name, array in arrays.items()}

    def _narrowed(self, name: str, array: np.ndarray) -> np.ndarray:
        if array.dtype.kind != "f":
            return array
        largest = float(np.abs(array).max())
        if not np.isfinite(largest):
            raise InputError(
                f"conditions: {name} has values that are no numbers; check the encoders"
            )
        if largest > float(np.finfo(self.dtype).max):
            raise InputError(
                f"conditions.dtype = {self.dtype}: {name} reaches {largest:.3g}, more than it "
                "holds; use float32"
            )
        return array.astype(self.dtype)

    def _check_room(self, folder: Path, part: dict[str, np.ndarray], rows: int) -> None:
        each = sum(value[0].nbytes for value in part.values())
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if each * rows > free:
            raise InputError(
                f"conditions: {rows:,} prompts take {each * rows / 1e9:.1f} GB as "
                f"{self.settings.dtype}, {free / 1e9:.1f} GB are free; set conditions.limit"
            )


if __name__ == "__main__":
    stage_main(run)
