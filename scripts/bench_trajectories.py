"""Throughput of trajectory generation against a bare loop of the same forward passes (``make
bench``).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from models.sampling.trajectories import path_condition, path_labels
from models.teachers.architectures import build_scheduler, build_unet
from models.teachers.base import Denoiser
from models.teachers.loading import build_denoiser
from tasks.config.schema import Params
from tasks.config.trajectories import Trajectories
from tasks.data.teacher import load_teacher
from tasks.data.trajectories import path_spec
from tasks.stages.trajectories import Job, ShardMaker
from tasks.utils.atomic import atomic_write_json
from tasks.utils.cli import stage_main
from tasks.utils.device import pick_device
from tasks.utils.progress import progress

ROUNDS = 5
WANTED = 0.9


def run(params: Params, root: Path) -> None:
    """Measure, print a table and write data/bench.json. Only ``trajectories`` of the parameters
    matters.
    """
    teacher, name = _teacher(root)
    result = {"teacher": name, **measure(params.trajectories, teacher.to(pick_device()), ROUNDS)}
    (root / "data").mkdir(exist_ok=True)
    atomic_write_json(root / "data" / "bench.json", result)
    table = Table(
        "", "rows/s", title=f"{name}, lane {params.trajectories.lane}, {result['device']}"
    )
    table.add_row("bare forward passes", f"{result['bare_rows_per_second']:.0f}")
    table.add_row("trajectory generation", f"{result['generation_rows_per_second']:.0f}")
    table.add_row("ratio", f"{100 * float(result['ratio']):.1f} % (wanted: {100 * WANTED:.0f} %)")
    Console().print(table)


def measure(spec: Trajectories, teacher: Denoiser, rounds: int) -> dict[str, float | str]:
    """Network rows per second of both, medians over ``rounds`` that alternate, and the median of
    their ratios.

    Generation is the stage's own work on one shard of ``spec.batch_size`` paths, noise, signatures,
    checksums and writing included; the bare loop calls the network as often, on lanes of the same
    size and layout.
    """
    maker = ShardMaker(spec, teacher, path_spec(spec, teacher).grid.tolist())
    lanes = max(1, spec.batch_size // spec.lane)
    rows = lanes * spec.lane * spec.steps
    bare, generation, ratios = [], [], []
    with tempfile.TemporaryDirectory() as folder, progress("bench", 2 * rounds + 2) as advance:
        job = Job("train", 0, lanes * spec.lane, Path(folder) / "shard")
        for number in range(rounds + 1):
            alone = _seconds(lambda: _bare_loop(teacher, maker, lanes), teacher)
            advance()
            whole = _seconds(lambda: maker.make(job), teacher)
            advance()
            if number:  # the first round warms up
                bare.append(rows / alone)
                generation.append(rows / whole)
                ratios.append(alone / whole)
    return {
        "device": torch.cuda.get_device_name() if teacher.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "rows_per_round": rows,
        "bare_rows_per_second": statistics.median(bare),
        "generation_rows_per_second": statistics.median(generation),
        "ratio": statistics.median(ratios),
    }


def _teacher(root: Path) -> tuple[Denoiser, str]:
    """The project's teacher, or an untrained network of the shipped one's size where there is none
    yet.
    """
    if (root / "data" / "teacher" / "model_index.json").is_file():
        return load_teacher(root), "data/teacher"
    network = build_unet(16, 1, (32, 64, 64), 1)
    return build_denoiser(
        network, build_scheduler("v_prediction", "linear")
    ), "untrained UNet, 16x16"


@torch.no_grad()
def _bare_loop(teacher: Denoiser, maker: ShardMaker, lanes: int) -> None:
    spec = maker.paths
    x = torch.randn(spec.lane, *teacher.shape, device=teacher.device)
    labels = path_labels(spec, teacher.num_classes, range(spec.lane))
    condition = path_condition(teacher, labels)
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(spec.precision)
    for t in spec.chain.levels.t:
        for _ in range(lanes):
            with torch.autocast(teacher.device.type, half, enabled=half is not None):
                teacher.predict(x, float(t), condition, spec.guidance)


def _seconds(work: Callable[[], object], teacher: Denoiser) -> float:
    if teacher.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if teacher.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    stage_main(run)
