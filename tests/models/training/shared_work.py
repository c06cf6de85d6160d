"""Small trainings that one process and two workers with sharded networks do alike, for tests."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from models.methods.base import DistillationMethod, ImageBatch, MethodContext, PathBatch
from models.methods.consistency import Consistency
from models.methods.consistency_config import ConsistencyConfig
from models.methods.sfd import SFD
from models.methods.sfd_config import SFDConfig
from models.methods.swd.schedule import make_schedule
from models.training.loop import LoopConfig, TrainState, train
from models.training.sharding import Share, gathered, shard_method, worker_mesh
from tasks.training.checkpoints import flatten, unflatten
from tasks.training.sharded_checkpoints import latest_sharded, load_sharded, save_sharded
from tests.models.methods.made import sigdeg, swd
from tests.models.teachers.texts import prompt_teacher
from tests.models.tinypaths import batch_of, spec_of, teacher_of

STEPS, HALF, MICRO, ROWS = 2, 1, 4, 3
# The first step, which has pure noise as its input, is the only one that calls the fake network
# with its weights frozen before they are trained: DMD is off at its size.
OWN_FEATURES: dict[str, Any] = {
    "mmd.features": "fake",
    "mmd.first_step": "image",
    "compare": "image",
    "backward_simulation": False,
    "excluded": (4,),
}
FAMILIES = ("sd", "sdxl", "sd3", "flux", "pixart", "sana")
Terms = list[dict[str, float]]


class Work(NamedTuple):
    """A method, its batches, and the precision."""

    method: DistillationMethod
    batches: Callable[[int, int, int], Any]
    precision: str = "float32"


def _on_paths(method: DistillationMethod, precision: str = "float32") -> Work:
    spec = method.context.spec
    assert spec is not None
    whole = batch_of(method.teacher, spec, 2 * ROWS * MICRO)

    def batches(step: int, micro: int, update: int) -> PathBatch:
        first = (step * MICRO + micro) * ROWS % len(whole.Y)
        rows = slice(first, first + ROWS)
        part = None if whole.condition is None else whole.condition[torch.arange(24)[rows]]
        return PathBatch(whole.Y[rows], whole.xi[rows], part, step)

    return Work(method, batches, precision)


def _on_images(method: DistillationMethod) -> Work:
    def batches(step: int, micro: int, update: int) -> ImageBatch:
        generator = torch.Generator().manual_seed(1000 * step + 10 * micro + update)
        labels = torch.randint(2, (ROWS,), generator=generator)
        x0 = 0.5 * torch.randn(ROWS, *method.teacher.shape, generator=generator)
        return ImageBatch(x0, method.teacher.encode_condition(labels), step)

    return Work(method, batches)


def _sigdeg(kind: str = "v_prediction", precision: str = "float32", **choices: Any) -> Work:
    teacher = teacher_of(kind)
    plain = {"nfe": (4, 2), "window_until": 0.0, "mmd": 0.5, "conditioning_limit": None}
    return _on_paths(sigdeg(teacher, spec_of(teacher), STEPS, **plain | choices), precision)


def _swd(kind: str = "v_prediction", **choices: Any) -> Work:
    schedule = make_schedule([(1.0, 4), (0.6, 8)], 8, 2)
    plain = {"gan": 0.0, "fake_updates": 2, "compare": "batch", "backward_simulation": True}
    return _on_images(swd(teacher_of(kind), schedule, **plain | choices))


def _family(name: str) -> Work:
    teacher = prompt_teacher(name)[1]
    teacher.embed_guidance(3.5)
    full = teacher.shape[-1]
    schedule = make_schedule([(1.0, full // 2), (0.5, full)], full, teacher.stride)
    plain = {"gan": 0.0, "fake_updates": 1, "compare": "batch"}
    return _on_images(swd(teacher, schedule, guidance=3.5, **plain))


def _ode(method: Any, config: Any) -> Work:
    teacher = teacher_of("v_prediction")
    return _on_paths(method(MethodContext(teacher, config, spec_of(teacher, eta=0.0))))


WORKS: dict[str, Callable[[], Work]] = {
    "sigdeg": _sigdeg,
    "sigdeg, energy score": lambda: _sigdeg(score=1.0),
    "sigdeg, calls computed again": lambda: _sigdeg(gradient_checkpointing=True),
    "sigdeg, damped by the teacher": lambda: _sigdeg("epsilon", conditioning_limit=2.0),
    "sigdeg, DiT": lambda: _sigdeg("dit", mmd=0.0),
    "sigdeg, adapters": lambda: _sigdeg(trainable="lora", lora_rank=2),
    "sigdeg, bfloat16": lambda: _sigdeg(precision="bfloat16"),
    "swd": _swd,
    "swd, blocks computed again": lambda: _swd(gradient_checkpointing=True),
    "swd, adapters": lambda: _swd("conditional", trainable="lora", lora_rank=2),
    "swd, features of the fake network": lambda: _swd(**OWN_FEATURES),
    # levels so low that some batches have no sample there
    "swd, critic": lambda: _swd(gan=0.1, **{"gan.levels": 0.2, "gan.features": 0.5}),
    "sfd": lambda: _ode(SFD, SFDConfig(nfe=(4, 2))),
    "consistency": lambda: _ode(Consistency, ConsistencyConfig(nfe=(4, 2))),
    **{f"swd, {name}": partial(_family, name) for name in FAMILIES},
}


def state_of(work: Work) -> TrainState:
    """The beginning of its training; clipping bites, so that a wrong norm shows."""
    config = LoopConfig(STEPS, 1e-3, ema=0.9, clip=0.1, accumulate=MICRO, precision=work.precision)
    return TrainState(work.method, config)


def trained(work: Work, state: TrainState, share: Share | None = None) -> Terms:
    """The terms of every step to the end."""
    return [report.terms for report in train(work.method, work.batches, state, share=share)]


def resumed(work: Work, folder: Path, share: Share) -> TrainState:
    """The state of the newest sharded checkpoint."""
    state = state_of(work)
    found = latest_sharded(folder, share)
    assert found is not None
    like, _ = flatten({"train": state.blank()})
    tensors, tree = load_sharded(found, like, share)
    state.load_state_dict(unflatten(tensors, tree)["train"])
    return state


def averages(state: TrainState, keep: bool = True) -> dict[str, Tensor]:
    """The student's averaged weights, whole."""
    return gathered(state.ema_weights["student"], keep)


def two_workers(folder: Path, names: list[str]) -> None:
    """Train by two workers; ``folder``/NAME gets their terms, averages and a checkpoint midway."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_worker, (port, str(folder), names), nprocs=2)


def _worker(rank: int, port: int, place: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for name in names:
        folder = Path(place) / name
        folder.mkdir(exist_ok=True)
        record = _trained_twice(name, folder, Share(rank, 2))
        (folder / f"{rank}.json").write_text(json.dumps(record))
    dist.destroy_process_group()


def _trained_twice(name: str, folder: Path, share: Share) -> dict[str, Any]:
    """To the end, and again from the checkpoint midway."""
    work = WORKS[name]()
    shard_method(work.method, worker_mesh(torch.device("cpu")), work.precision)
    state, terms = state_of(work), []
    held = sum(p.to_local().numel() for p in work.method.networks["student"].parameters())
    for report in train(work.method, work.batches, state, share=share):
        terms.append(report.terms)
        if report.step == HALF:
            tensors, tree = flatten({"train": state.state_dict()})
            save_sharded(folder, HALF, tensors, tree, 2, share)
    found = averages(state, share.rank == 0)
    if share.rank == 0:
        save_file(found, folder / "averages.safetensors")
    places = {p.to_local().data_ptr() for p in work.method.teacher.network.parameters()}
    own = [p.to_local() for p in work.method.networks["student"].parameters()]
    common = sum(part.data_ptr() in places for part in own if part.numel())
    again = WORKS[name]()
    shard_method(again.method, worker_mesh(torch.device("cpu")), again.precision)
    later = trained(again, resumed(again, folder, share), share)
    return {"terms": terms, "later": later, "held": held, "common": common}
