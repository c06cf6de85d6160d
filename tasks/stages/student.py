"""Student stage: Ray Train around the training loop, into data/student, a diffusers pipeline
folder.

The trainer runs in this process with ``student.workers: 0`` and on that many Ray workers, one GPU
each where there are any, otherwise. Checkpoints are the project's own in both modes, so a killed
worker or driver continues exactly.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.utils import environment

if __name__ == "__main__":  # OpenMP reads its settings when torch is imported
    environment.prepare(Path.cwd())

import pandas as pd
import torch

from models.common.errors import InputError
from models.methods.base import DistillationMethod
from models.methods.export import export_pipeline
from models.teachers.base import Denoiser
from models.training.loop import LoopConfig, TrainState
from models.training.optimizers import check_optimizer
from models.training.sharding import Share, shard_method, worker_mesh
from tasks.config.external_paths import judging_files, worker_files
from tasks.config.schema import Params, params_from_dict
from tasks.config.student import Student
from tasks.data.agreement import check_teacher_fits_dataset
from tasks.data.batches import BatchPlan, batches_for
from tasks.data.conditions import check_conditions
from tasks.data.dataset import load_manifest
from tasks.data.shards import ShardSet
from tasks.data.teacher import load_teacher
from tasks.data.trajectories import open_trajectories
from tasks.evaluation.validation import check_metrics
from tasks.methods.context import make_context, method_of, real_states
from tasks.methods.model_card import provenance, render
from tasks.methods.take_away import form_of, write_stock
from tasks.methods.text_parts import save_examples, with_prompts
from tasks.training.selection import Selection
from tasks.training.trainer import Training
from tasks.utils.atomic import atomic_dir, atomic_write_json, read_json
from tasks.utils.cli import stage_main
from tasks.utils.device import pick_device
from tasks.utils.failpoints import reach
from tasks.utils.locks import scratch_lock
from tasks.utils.progress import followed, report_progress_to
from tasks.utils.scratch import scratch_for
from tasks.utils.stage_names import STAGES

if TYPE_CHECKING:
    from tasks.training.node_folder import ProjectFolder

logger = logging.getLogger(__name__)
RESULT, FACTS, PROGRESS = "result.json", "diagnostics.json", "progress.json"
NO_COMMON_FOLDER = (
    "student.sharding = full on a node without the project's folder {root}: expected one that all "
    "nodes share, for each writes its part of a checkpoint; mount it, or use student.sharding=none"
)
RUNTIME_ONLY = {"workers", "batch_size", "shard_size", "compile"}


def run(params: Params, root: Path) -> None:
    """Write data/student: the best student by rolled-out KID, student.json and history.csv."""
    shards = open_trajectories(root)
    teacher = load_teacher(root)
    check_teacher_fits_dataset(teacher, root)
    _check_cache(params, root, shards, teacher)
    scratch = _scratch(params, root, shards)
    with scratch_lock(scratch):
        if read_json(scratch / FACTS) is None:
            atomic_write_json(scratch / FACTS, _prepare(params, root, teacher, shards))
        reach("student.measured")
        if read_json(scratch / RESULT) is None:
            _fit(params, root, scratch)
        if not _kept(scratch):
            _start_over(scratch)
            _fit(params, root, scratch)
        reach("student.trained")
        _publish(params, root, scratch, teacher.cpu(), shards)


def _prepare(params: Params, root: Path, teacher: Denoiser, shards: ShardSet) -> dict[str, Any]:
    """What the method chooses or measures once, before any training."""
    method = method_of(params)
    # a mistake there should show before the long work
    check_metrics(params, root)
    check_optimizer(params.student.optimizer)
    _check_sharding(params, method)
    real_states(method, params.method, root, teacher)
    return method.prepare(make_context(params, root, teacher.to(pick_device()), shards))


def _check_sharding(params: Params, method: type[DistillationMethod]) -> None:
    if params.student.sharding == "none":
        return
    method.check_sharding(params.method)
    if params.student.workers < 2:
        logger.warning(
            "student.sharding = full with student.workers = %d: one worker holds all; "
            "give several a part each",
            params.student.workers,
        )


def _scratch(params: Params, root: Path, shards: ShardSet) -> Path:
    """The place of unfinished work, named by all that the result depends on: of sharded networks
    not the number of workers, any of which go on from the same checkpoints.
    """
    student = params.student.model_dump(mode="json", exclude={"workers", "max_failures", "elastic"})
    rows = {split: shards.rows(split) for split in shards.splits}
    images, features = load_manifest(root)["sha256"], params.evaluation.features
    workers = params.student.workers if params.student.sharding == "none" else 0
    inputs = (params.method, student, shards.meta, rows, images, features, workers)
    return scratch_for(root, "student", *inputs)


def _check_cache(params: Params, root: Path, shards: ShardSet, teacher: Denoiser) -> None:
    again = "run python -m tasks.stages.trajectories (or dvc repro) again"
    if shards.meta["teacher"] != teacher.fingerprint():
        raise InputError(f"data/trajectories belongs to another teacher; {again}")
    check_conditions(teacher.condition_kind, shards.meta, root)
    there = shards.meta | {split: shards.rows(split) for split in shards.splits}
    for key, wanted in params.trajectories.model_dump(mode="json", exclude=RUNTIME_ONLY).items():
        if there.get(key) != wanted:
            raise InputError(
                f"data/trajectories was made with {key} = {there.get(key)}, trajectories.{key} is "
                f"{wanted}; {again}"
            )


def _kept(scratch: Path) -> bool:
    """Whether the best weights, which no checkpoint brings back, are sound."""
    try:
        Selection.best_weights(scratch, json.loads((scratch / RESULT).read_text())["best_step"])
    except InputError as error:
        logger.warning("the best weights are damaged, training starts over: %s", error)
        return False
    return True


def _start_over(scratch: Path) -> None:
    (scratch / RESULT).unlink()
    for folder in (*scratch.glob("step-*"), scratch / "best"):
        shutil.rmtree(folder, ignore_errors=True)


def _fit(params: Params, root: Path, scratch: Path) -> None:
    """Run the worker function under Ray Train; after a lost worker all start again,
    ``max_failures`` times, from the last checkpoint. A mistake of the user (a NaN, say) would come
    again and ends it at once.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from tasks.training.ray_cluster import quiet_train, workers_with_room

    workers, fewer = params.student.workers, _fewer(params.student)
    with _cluster(params, root) as (gpus, folder), quiet_train():
        work = {
            "params": params.model_dump(mode="json"),
            "folder": folder,
            "scratch": str(scratch),
        }
        run = RunConfig(name=scratch.name, storage_path=str(root / ".fewstep" / "ray"))
        for left in reversed(range((params.student.max_failures if workers else 0) + 1)):
            try:
                # asked again after each loss, which may have taken the room away
                number = workers_with_room(workers, fewer) if workers else 0
                scaling = ScalingConfig(num_workers=number, use_gpu=bool(gpus) and number > 0)
                with followed(scratch / PROGRESS) if workers else nullcontext():
                    TorchTrainer(
                        _work, train_loop_config=work, scaling_config=scaling, run_config=run
                    ).fit()
                break
            except Exception as error:
                cause = _cause(error)
                if not left or isinstance(cause, InputError):
                    raise cause from error
                logger.warning(
                    "a training worker was lost; going on from the last checkpoint (%d more times)",
                    left - 1,
                )
    if not (scratch / RESULT).is_file():
        raise RuntimeError(
            "the training workers ended without a result; their logs are under "
            f"{root / '.fewstep' / 'ray'}"
        )


@contextmanager
def _cluster(params: Params, root: Path) -> Iterator[tuple[int, ProjectFolder]]:
    """The number of GPUs of the workers' cluster, and the project's folder for them; without
    workers there is no cluster.
    """
    from tasks.training.node_folder import ProjectFolder
    from tasks.training.ray_cluster import connect, folder_for

    workers = params.student.workers
    if not workers:
        yield 0, ProjectFolder(str(root))
        return
    results = STAGES[: STAGES.index("student")]
    needs = [*worker_files(params, root, results), *judging_files(params, root)]
    with connect(workers) as gpus, folder_for(root, needs) as folder:
        yield gpus, folder


def _fewer(student: Student) -> list[int]:
    """Numbers of workers below that asked for which share a step's batches out evenly; none where
    the result depends on the number, or where it is to be waited for.
    """
    if not student.elastic:
        return []
    return [number for number in range(1, student.workers) if student.accumulate % number == 0]


def _cause(error: BaseException) -> BaseException:
    """The InputError inside what Ray raised, if there is one, so that a user sees one line."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, InputError):
            return InputError(str(seen))
        failures = getattr(seen, "worker_failures", None) or {}
        for failure in failures.values():
            if isinstance(failure, InputError) or isinstance(
                getattr(failure, "cause", None), InputError
            ):
                return InputError(str(getattr(failure, "cause", None) or failure))
        seen = seen.__cause__ or seen.__context__
    return error


def _work(config: dict[str, Any]) -> None:
    """One worker's share of the training; with no workers, all of it."""
    from tasks.training.node_folder import Mirror

    node = config["folder"].open()
    params = params_from_dict(config["params"], node.root)
    workers = params.student.workers
    rank, world = _place(workers)
    place = Mirror(node, Path(config["scratch"]), f"rank-{rank}")
    if node.copied and params.student.sharding == "full":
        raise InputError(NO_COMMON_FOLDER.format(root=node.project))
    training = build_training(params, node.root, place.here, _device(workers), rank, world)
    training.saved = place.publish
    told = workers and rank == 0
    shown = report_progress_to(place.here / PROGRESS) if told else nullcontext()
    with _threads(workers), shown, place.telling(PROGRESS) if told else nullcontext():
        training.run("student")
    if rank == 0:
        best = {
            "best_step": training.extra["best_step"],
            "scores": training.extra["scores"],
            "steps": training.state.step,
        }
        pd.DataFrame(training.history).to_csv(place.here / "history.csv", index=False)
        atomic_write_json(place.here / RESULT, best)
        place.publish()


def build_training(
    params: Params, root: Path, scratch: Path, device: torch.device, rank: int = 0, world: int = 1
) -> Training:
    """Everything that training needs, deterministic in its arguments."""
    student = params.student
    share = Share(rank, world) if student.sharding == "full" else None
    if share is not None:
        rank, world = 0, 1  # batches and noise are those of one worker
    # a device never holds what is about to be divided
    divided = share is not None and share.world > 1
    teacher = load_teacher(root, torch.device("cpu") if divided else device)
    shards = open_trajectories(root)
    kind = method_of(params)
    torch.manual_seed(student.seed)
    method = kind(make_context(params, root, teacher, shards, read_json(scratch / FACTS)))
    if divided:
        shard_method(method, worker_mesh(device), student.precision)
    elif device.type == "cpu" and share is None:
        method.pipeline.unet.to(memory_format=torch.channels_last)
    config = LoopConfig(
        steps=student.steps,
        learning_rate=student.learning_rate,
        learning_rates=method.learning_rates,
        warmup=student.warmup,
        schedule=student.schedule,
        weight_decay=student.weight_decay,
        ema=student.ema,
        clip=student.clip,
        accumulate=student.accumulate,
        precision=student.precision,
        optimizer=student.optimizer,
        seed=student.seed,
    )
    state = TrainState(method, config)
    plan = BatchPlan(student.batch_size, student.accumulate, student.seed, device, rank, world)
    batches = batches_for(kind.needs, root, teacher, shards, plan)
    batches.real = real_states(kind, params.method, root, teacher)
    selection = Selection(method, params, root, scratch, device, share)
    return Training(
        method,
        state,
        batches,
        scratch,
        device,
        checkpoint_every=student.checkpoint_every,
        keep=student.keep_checkpoints,
        validate_every=student.validate_every,
        validate=selection.validate,
        rank=rank,
        share=share,
        extra=selection.record,
    )


def _publish(
    params: Params, root: Path, scratch: Path, teacher: Denoiser, shards: ShardSet
) -> None:
    result = json.loads((scratch / RESULT).read_text())
    diagnostics = json.loads((scratch / FACTS).read_text())
    pipeline = method_of(params).untrained(make_context(params, root, teacher, shards, diagnostics))
    weights = Selection.best_weights(scratch, result["best_step"])
    student = with_prompts(export_pipeline(pipeline, weights), teacher, params, root)
    kept = ("steps", "eta", "intervals", "depth", "seed", "grid_points")
    record = result | {
        "method": params.method.model_dump(mode="json"),
        "nfe": list(params.method.nfe),
        "diagnostics": diagnostics,
        "teacher": teacher.fingerprint(),
        "trajectories": {key: shards.meta[key] for key in kept},
        "origin": provenance(params, root, student),
        "stock": form_of(student, weights, root),
    }
    with atomic_dir(root / "data" / "student") as folder:
        student.save_pretrained(folder)
        save_examples(student, teacher, folder)
        write_stock(record["stock"], weights, folder)
        reach("student.saved")
        atomic_write_json(folder / "student.json", record)
        (folder / "README.md").write_text(render(record), encoding="utf-8")
        (folder / "history.csv").write_bytes((scratch / "history.csv").read_bytes())
    scores = ", ".join(f"{name} {value:.5f}" for name, value in result["scores"].items())
    print(f"student: best at step {result['best_step']} of {result['steps']}, {scores}")


def _place(workers: int) -> tuple[int, int]:
    if not workers:
        return 0, 1
    from ray.train import get_context

    context = get_context()
    return context.get_world_rank(), context.get_world_size()


def _device(workers: int) -> torch.device:
    if not workers:
        return pick_device()
    from ray.train.torch import get_device

    return get_device()  # type: ignore[no-any-return]


@contextmanager
def _threads(workers: int) -> Iterator[None]:
    """Ray sets one thread a worker; the in-process mode keeps torch's own number."""
    from tasks.training.ray_cluster import use_worker_threads

    before = torch.get_num_threads()
    if workers:
        use_worker_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    stage_main(run)
