"""What the machinery costs: trajectories, a training step and student sampling, each against a bare
loop of the same network passes (``make bench``).

The two sides of a pair take turns, and the ratio is the median over the rounds, so that a busy
machine slows both. The bare loops do what nobody could leave out: forward and backward passes on
inputs of the same shapes and layout, and the optimizer's step.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from models.methods.base import MethodContext, PathBatch
from models.methods.sigdeg.config import SigDEGConfig
from models.methods.sigdeg.method import SigDEG
from models.sampling.trajectories import (
    PathSpec,
    kept_features,
    labels_and_condition,
    path_features,
)
from models.teachers.architectures import build_scheduler, build_unet
from models.teachers.base import Denoiser
from models.teachers.loading import build_denoiser
from models.training.loop import LoopConfig, TrainState, train
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
SAMPLES = 64  # of a sampling round


@dataclass(frozen=True)
class Pair:
    """The same ``rows`` network passes of one sample, ``bare`` and as the ``product`` makes them;
    ``wanted``: the least ratio of their speeds that is called good.
    """

    title: str
    wanted: float
    rows: int
    bare: Callable[[], object]
    product: Callable[[], object]


@dataclass(frozen=True)
class Figures:
    """Medians over the rounds: passes a second of both sides, and the ratio."""

    title: str
    wanted: float
    bare_rows_per_second: float
    rows_per_second: float
    ratio: float


def run(params: Params, root: Path) -> None:
    """Measure, print a table and write data/bench.json. Training and sampling are Sig-DEG's, with
    the settings of the parameters where they name this method.
    """
    teacher, name = _teacher(root)
    teacher = teacher.to(pick_device())
    with tempfile.TemporaryDirectory() as folder:
        found = measure(pairs(params, teacher, Path(folder)), teacher, ROUNDS)
    device = torch.cuda.get_device_name() if teacher.device.type == "cuda" else "cpu"
    about = {"teacher": name, "device": device, "threads": torch.get_num_threads()}
    (root / "data").mkdir(exist_ok=True)
    atomic_write_json(root / "data" / "bench.json", {**about, "pairs": list(map(asdict, found))})
    table = Table("", "bare", "here", "ratio", "wanted", title=f"{name}, {device}: passes a second")
    for row in found:
        speeds = f"{row.bare_rows_per_second:.0f}", f"{row.rows_per_second:.0f}"
        table.add_row(row.title, *speeds, f"{row.ratio:.3f}", f"{row.wanted:.2f}")
    Console().print(table)


def pairs(params: Params, teacher: Denoiser, folder: Path) -> list[Pair]:
    """The three pairs; ``folder`` takes the shards."""
    spec = path_spec(params.trajectories, teacher)
    method = params.method if isinstance(params.method, SigDEGConfig) else SigDEGConfig()
    context = MethodContext(teacher, method.model_copy(update={"calibrate": False}), spec)
    return [
        trajectories_pair(params.trajectories, teacher, spec, folder),
        training_pair(context, params.student.batch_size),
        sampling_pair(context),
    ]


def measure(jobs: list[Pair], teacher: Denoiser, rounds: int) -> list[Figures]:
    """Each pair's figures; a first round that is not counted warms up."""
    found = []
    with progress("bench", 2 * (rounds + 1) * len(jobs)) as advance:
        for job in jobs:
            bare, product = [], []
            for number in range(rounds + 1):
                for work, times in ((job.bare, bare), (job.product, product)):
                    seconds = _seconds(work, teacher)
                    advance()
                    if number:
                        times.append(seconds)
            speeds = (statistics.median(job.rows / s for s in times) for times in (bare, product))
            ratio = statistics.median(b / p for b, p in zip(bare, product, strict=True))
            found.append(Figures(job.title, job.wanted, *speeds, ratio))
    return found


def trajectories_pair(
    settings: Trajectories, teacher: Denoiser, spec: PathSpec, folder: Path
) -> Pair:
    """The stage's own work on one shard, noise, signatures, checksums and writing included."""
    maker = ShardMaker(settings, teacher, spec.grid.tolist())
    lanes = max(1, settings.batch_size // settings.lane)
    job = Job("train", 0, lanes * settings.lane, folder / "shard")
    own = maker.paths
    _, condition = labels_and_condition(own, teacher, "train", range(settings.lane))
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(settings.precision)
    x = torch.randn(settings.lane, *teacher.shape, device=teacher.device)

    @torch.no_grad()
    def bare() -> None:
        for t in maker.paths.chain.levels.t:
            for _ in range(lanes):
                with torch.autocast(teacher.device.type, half, enabled=half is not None):
                    teacher.predict(x, float(t), condition, own.guidance)

    rows = lanes * settings.lane * settings.steps
    return Pair("trajectories", 0.95, rows, bare, lambda: maker.make(job))


def training_pair(context: MethodContext, size: int) -> Pair:
    """One optimizer step for each number of steps: rollouts, losses, clipping and averaging."""
    method = SigDEG(context)
    nfe, draws = method.nfe, 2 if method.config.loss.score else 1
    # full rollouts from the first step
    whole = {"window": method.config.window.model_copy(update={"grow_until": 0.0})}
    # losses on the teacher's features make passes of their own, which the bare loop does not
    loss = method.config.loss.model_copy(update={"path": 1.0, "mmd": 0.0, "features": 0.0})
    method.config = method.config.model_copy(update={**whole, "loss": loss})
    network = method.pipeline.unet
    batch = _paths(context, size)
    count = len(nfe)
    config = LoopConfig(steps=10**9, learning_rate=1e-6)
    steps = train(method, lambda step, *_: batch._replace(step=step), TrainState(method, config))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)
    inputs = _network_inputs(context, network, size)

    def bare() -> None:
        for n in nfe:
            optimizer.zero_grad(set_to_none=True)
            ends = [_chain(context.teacher, network, inputs, n) for _ in range(draws)]
            torch.stack(ends).square().mean().backward()
            optimizer.step()

    def product() -> None:
        for _ in range(count):
            next(steps)

    return Pair("training step", 0.95, draws * size * sum(nfe), bare, product)


def sampling_pair(context: MethodContext) -> Pair:
    """The student's pipeline, called as a user calls it, at each number of steps."""
    pipeline = SigDEG.untrained(context).to(context.teacher.device)
    network, nfe = pipeline.unet.eval(), pipeline.nfe
    if context.teacher.device.type == "cpu":
        network.to(memory_format=torch.channels_last)
    inputs = _network_inputs(context, network, SAMPLES)
    labels = None if context.teacher.num_classes is None else 0
    calls = sum(pipeline.network_calls(n) for n in nfe)

    @torch.no_grad()
    def bare() -> None:
        for n in nfe:
            _chain(context.teacher, network, inputs, pipeline.network_calls(n))

    def product() -> None:
        for n in nfe:
            pipeline(SAMPLES, n, class_labels=labels, output_type="pt")

    return Pair("student sampling", 0.97, SAMPLES * calls, bare, product)


def _chain(teacher: Denoiser, network: torch.nn.Module, inputs: Tensor, calls: int) -> Tensor:
    """Calls of a network on inputs whose first channels are the answer before: the passes of a
    rollout, and nothing else of it.
    """
    n, channels = len(inputs), teacher.shape[0]
    state, rest = inputs[:, :channels], inputs[:, channels:]
    t = torch.full((n,), 500, device=inputs.device)
    condition = teacher.default_condition(n)
    given = {} if condition is None else dict(condition)
    for _ in range(calls):
        answer = network(torch.cat([state, rest], 1), t, **given, return_dict=False)[0]
        state = answer[:, :channels]
    return state


def _network_inputs(context: MethodContext, network: torch.nn.Module, size: int) -> Tensor:
    channels = int(network.config.in_channels)  # type: ignore[union-attr, arg-type]
    shape = (size, channels, *context.teacher.shape[1:])
    return torch.randn(shape, device=context.teacher.device)


def _paths(context: MethodContext, size: int) -> PathBatch:
    """Stand-ins for cached paths: noise has the same cost as states."""
    spec, teacher = context.spec, context.teacher
    assert spec is not None
    Y = torch.randn(size, len(spec.grid), *teacher.shape)
    xi = path_features(0, "train", range(size), kept_features(spec.parts), teacher.shape)
    device = teacher.device
    real = torch.randn(size, *teacher.shape, device=device)
    return PathBatch(Y.to(device), xi.float().to(device), teacher.default_condition(size), 0, real)


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
