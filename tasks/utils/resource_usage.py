"""What a stage costs: its time, the calls of networks and the most memory it held, kept beside the
results so that MLflow and the benchmark can tell.

Records lie in .fewstep/measurements/STAGE/, outside DVC's outputs, named by what the stage wrote.
So a result that comes back from DVC's cache finds the cost of the run that made it.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil

from tasks.utils.atomic import atomic_write_json
from tasks.utils.network_passes import Passes, count_passes
from tasks.utils.peak_memory import own_peak

FOLDER = Path(".fewstep/measurements")
EVERY_SECONDS = 0.5
SMALL_FILE = 256 * 1024
MIB = 1024**2
COMPILES = "trajectories"  # where networks may be compiled, and are not counted

_noted: dict[str, Any] = {}


def note(**facts: Any) -> None:
    """Add facts to the measurement of the stage that runs in this process, if one does."""
    _noted.update(facts)


@contextmanager
def measure_resources(root: Path, stage: str) -> Iterator[None]:
    """Record the cost of the block that makes data/STAGE; nothing is recorded if it fails.

    ``network_evaluations`` and ``trained_evaluations`` are those of this process
    (:mod:`tasks.utils.network_passes`). ``resumed`` is there where the block went on from earlier
    work: the cost is not that of the whole result then.
    """
    _noted.clear()
    start, before, ended, peak = time.monotonic(), _cpu_seconds(), threading.Event(), [0]
    watcher = threading.Thread(target=_watch, args=(ended, peak), daemon=True)
    watcher.start()
    # torch is there before the stage starts, or the stage has no use for it
    counting = stage != COMPILES and "torch" in sys.modules
    try:
        with count_passes() if counting else nullcontext(Passes()) as passes:
            yield
    finally:
        ended.set()
        watcher.join()
    name = identity(root / "data" / stage)
    if name is not None:
        cost = {
            "seconds": round(time.monotonic() - start, 3),
            "cpu_seconds": round(_cpu_seconds() - before, 3),
            # the system's own record misses no short peak of this process
            "peak_memory_mib": round(max(peak[0], own_peak()) / MIB, 1),
        }
        cost |= passes.record() | _noted | _cuda()
        atomic_write_json(root / FOLDER / stage / f"{name}.json", cost)


def measurement(root: Path, stage: str) -> dict[str, Any]:
    """The record of the run that made the present data/STAGE; {} if there is none."""
    return _read(root / FOLDER / stage / f"{identity(root / 'data' / stage)}.json")


def costs(root: Path, stages: Sequence[str]) -> dict[str, float]:
    """Metrics of the present results, such as {"stage_seconds/student": 34.1,
    "peak_memory_mib/student": 812.0}.

    Stages whose cost is not known (made elsewhere, or before `make clean`) are left out.
    """
    names = {
        "seconds": "stage_seconds",
        "peak_memory_mib": "peak_memory_mib",
        "peak_cuda_mib": "peak_cuda_mib",
    }
    found: dict[str, float] = {}
    for stage in stages:
        found |= {
            f"{names[key]}/{stage}": float(value)
            for key, value in measurement(root, stage).items()
            if key in names
        }
    return found


def identity(folder: Path) -> str | None:
    """A name (hex) for a folder's content: names and sizes of all files, and what the small ones
    say; None if empty.

    Large arrays are not read: their checksums are in the stages' small manifests.
    """
    digest, files = hashlib.sha256(), sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        if size <= SMALL_FILE:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:32] if files else None


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _watch(ended: threading.Event, peak: list[int]) -> None:
    """Keep the largest resident memory of this process and all below it (pages that they share
    count for each).
    """
    own = psutil.Process()
    while True:
        total = 0
        for process in [own, *own.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.Error:
                continue
        peak[0] = max(peak[0], total)
        if ended.wait(EVERY_SECONDS):
            return


def _cpu_seconds() -> float:
    """User and system time of this process and of the children that it has waited for."""
    spent = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def _cuda() -> dict[str, float]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    peaks = [torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count())]
    return {"peak_cuda_mib": round(max(peaks) / MIB, 1)}
