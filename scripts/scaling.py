"""How the work on trajectories scales over Ray workers: `python -m scripts.scaling`.

Measures the code that spreads shards (tasks/stages/trajectories.py) with workers that sleep in
place of a GPU's work, so that few cores do; then simulates more workers with the driver's time per
task that was measured.
"""

from __future__ import annotations

import argparse
import heapq
import sys
import time
from pathlib import Path
from typing import Any

from tasks.utils import environment

if __name__ == "__main__":
    environment.prepare(Path.cwd())

from tasks.config.schema import Params
from tasks.stages import trajectories
from tasks.stages.trajectories import Job

SHARD_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)


class Sleeper:
    """A worker whose shards take as long as they are told; takes a maker's place."""

    def __init__(self, root: str, spec: dict[str, Any], extensions: Any, points: list[int]):
        self.seconds = points[0] / 1000

    def make(self, job: Job) -> Job:
        time.sleep(self.seconds)
        return job


def throughput(workers: int, tasks: int, seconds: float) -> float:
    """Tasks a second of so many sleeping workers, in the second half of the tasks: all of them have
    started by then.
    """
    params = Params.model_validate({"trajectories": {"workers": workers}})
    jobs = [Job("train", i, i + 1, Path(f"{i}")) for i in range(tasks)]
    ended: list[float] = []
    real, trajectories._RayMaker = trajectories._RayMaker, Sleeper  # type: ignore[misc,assignment]
    try:
        points = [round(seconds * 1000)]
        for _ in trajectories._on_ray(Path.cwd(), params, jobs, points, lambda count: None):
            ended.append(time.monotonic())
    finally:
        trajectories._RayMaker = real  # type: ignore[misc]
    half = tasks // 2
    return (tasks - 1 - half) / (ended[-1] - ended[half])


def simulate(workers: int, tasks: int, seconds: float, driver: float) -> float:
    """The efficiency of `workers` whose tasks take `seconds` each, when the one driver is busy for
    `driver` seconds with each task before it begins: the part of the workers' time at work.
    """
    free = [(0.0, worker) for worker in range(workers)]  # when each asks for its next task
    heapq.heapify(free)
    ready = end = 0.0  # when the driver is free; when the last task has ended
    for _ in range(tasks):
        asked, worker = heapq.heappop(free)
        ready = max(ready, asked) + driver
        heapq.heappush(free, (ready + seconds, worker))
        end = max(end, ready + seconds)
    return tasks * seconds / (workers * end)


def main(argv: list[str] | None = None) -> int:
    """Print what was measured and simulated."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seconds", type=float, default=0.5, help="of sleep, a task")
    parser.add_argument("--tasks", type=int, default=40, help="for each worker")
    parser.add_argument("--paths", type=int, default=1_000_000, help="to simulate")
    parser.add_argument("--shard", type=int, default=256, help="paths in a shard, to simulate")
    parser.add_argument("--nodes", type=int, default=64, help="workers to simulate")
    given = parser.parse_args(argv)
    alone = 0.0
    for workers in given.workers:
        found = throughput(workers, given.tasks * workers, given.seconds)
        alone = alone or found / workers
        overhead = workers / found - given.seconds
        print(
            f"{workers} workers: {found:.2f} tasks/s, efficiency {found / workers / alone:.3f}, "
            f"overhead {1000 * overhead:.1f} ms a task"
        )
    driver = 1 / throughput(2, 2000, 0.0)
    print(f"driver: {1000 * driver:.2f} ms a task")
    tasks = -(-given.paths // given.shard)
    print(f"simulated, {given.nodes} workers, {given.paths} paths in {tasks} shards:")
    for seconds in SHARD_SECONDS:
        part = simulate(given.nodes, tasks, seconds, driver)
        print(f"  a shard of {seconds:g} s: efficiency {part:.3f}")
    print(f"saturated by shards of less than {given.nodes * driver:.3f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
