"""Teacher stage: a pretrained diffusers pipeline, or one trained here, into data/teacher."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tasks.utils import environment

if __name__ == "__main__":  # OpenMP reads its settings when torch is imported
    environment.prepare(Path.cwd())

import numpy as np
import torch
from torch import Tensor

from models.common.errors import InputError
from models.common.random import generator_for
from models.methods.denoising import Denoising, Images
from models.methods.own_network import check_own_network
from models.teachers.architectures import build_network, build_scheduler
from models.teachers.base import Denoiser
from models.teachers.conditioning import class_condition
from models.teachers.factory import call_factory, save_weights
from models.teachers.loading import (
    denoiser_of_pipeline,
    open_pipeline,
    pipeline_parts,
    read_null_class,
    read_record,
    save_pipeline,
)
from models.teachers.opening import open_source
from models.teachers.trial import check_it_runs
from models.teachers.unet2d import null_class_last
from models.training.loop import Batches, LoopConfig, TrainState
from tasks.config.schema import Params
from tasks.config.teacher import FactoryTeacher, PretrainedTeacher, TrainedTeacher
from tasks.data.agreement import check_teacher_fits_dataset
from tasks.data.dataset import load_manifest, load_split
from tasks.data.kinds import kind_of
from tasks.training.trainer import Training
from tasks.utils.atomic import atomic_dir, atomic_write_json
from tasks.utils.cli import stage_main
from tasks.utils.device import pick_device
from tasks.utils.failpoints import reach
from tasks.utils.locks import scratch_lock
from tasks.utils.scratch import scratch_for


def run(params: Params, root: Path) -> None:
    """Write data/teacher: a pipeline folder (``DDPMPipeline.from_pretrained`` opens it) and
    teacher.json.
    """
    destination = root / "data" / "teacher"
    if isinstance(params.teacher, FactoryTeacher):
        teacher, save, record = _made(params.teacher)
    else:
        if isinstance(params.teacher, TrainedTeacher):
            pipeline, record = _trained(params.teacher, root)
        else:
            pipeline, record = _pretrained(params.teacher, root)
        teacher = denoiser_of_pipeline(
            pipeline, "in memory", record["null_class"], record.get("scaling"), record.get("size")
        )
        save = partial(save_pipeline, pipeline)
    check_own_network(teacher)
    check_it_runs(teacher)
    reach("teacher.ready")
    if (root / "data" / "dataset" / "manifest.json").is_file():
        check_teacher_fits_dataset(teacher, root)
    record |= {
        "fingerprint": teacher.fingerprint(),
        "shape": list(teacher.shape),
        "condition_kind": teacher.condition_kind,
        "prediction_type": teacher.prediction_type,
    }
    with atomic_dir(destination) as folder:
        save(folder)
        reach("teacher.saved")
        atomic_write_json(folder / "teacher.json", record)
    count = sum(p.numel() for p in teacher.network.parameters())
    print(
        f"teacher: {count / 1e6:.2f} M parameters, {teacher.prediction_type}, state "
        f"{teacher.shape}, {record['fingerprint'][:12]}"
    )


def _made(source: FactoryTeacher) -> tuple[Denoiser, Callable[[Path], None], dict[str, Any]]:
    teacher = call_factory(source.factory, source.arguments)
    record = {
        "source": "factory",
        "factory": source.factory,
        "arguments": source.arguments,
        "null_class": teacher.null_class,
    }
    return teacher, partial(save_weights, teacher), record


def _pretrained(source: PretrainedTeacher, root: Path) -> tuple[Any, dict[str, Any]]:
    local = root / source.path
    if local.exists() and source.revision is not None:
        raise InputError(
            f"teacher.revision = {source.revision}: {source.path} is a folder here, which has no "
            "revisions; use null"
        )
    name = str(local if local.exists() else source.path)
    pipeline = open_source(
        name,
        config=source.config and str(root / source.config),
        lora=source.lora and str(root / source.lora),
        lora_scale=source.lora_scale,
        variant=source.variant,
        dtype=source.dtype,
        revision=source.revision,
        trust_remote_code=source.trust_remote_code,
    )
    null_class = source.null_class
    if null_class is None:
        null_class = read_null_class(name)
    network = pipeline_parts(pipeline).get("unet")
    if null_class is not None and type(network).__name__ == "UNet2DModel":
        null_class = null_class_last(network, null_class)
    teacher = denoiser_of_pipeline(pipeline, name, null_class, size=source.size)
    return _stock(pipeline, teacher), {
        "source": source.path,
        "revision": source.revision,
        "null_class": teacher.null_class,
        **_size(source, name),
        **({} if source.dtype == "float32" else {"dtype": source.dtype}),
        **({} if source.lora is None else {"lora": source.lora, "lora_scale": source.lora_scale}),
        **_scaling(source, teacher, root),
    }


def _scaling(source: PretrainedTeacher, teacher: Denoiser, root: Path) -> dict[str, Any]:
    """What teacher.json says of the scaling of series; nothing for images. Weights do not tell
    what scale they were trained in, so it has to be said.
    """
    if len(teacher.shape) != 2:
        if source.scaling is not None:
            raise InputError(
                f"teacher.scaling = {source.scaling}: this teacher makes images; use null"
            )
        return {}
    if source.scaling == "dataset":
        return {"scaling": load_manifest(root).get("scaling")}
    if source.scaling is None and teacher.codec.scaling is None:
        raise InputError(
            f"teacher {source.path}: makes series and does not say in what scale; expected "
            "scaling in its teacher.json, or teacher.scaling=dataset (trained on (x - mean) / std "
            "of these data) or none (trained on the data as they are)"
        )
    return {"scaling": None if source.scaling == "none" else teacher.codec.scaling}


def _size(source: PretrainedTeacher, name: str) -> dict[str, int]:
    """What teacher.json says of the size of images, where somebody chose one."""
    chosen = read_record(name).get("size") if source.size is None else source.size
    return {} if chosen is None else {"size": int(chosen)}


def _stock(pipeline: Any, teacher: Denoiser) -> Any:
    """diffusers' own pipeline of the same parts: code that came with the teacher is not needed
    after this stage. None of the parts gets lost: the denoiser knows them all.
    """
    from diffusers import DDPMPipeline, DiTPipeline, LDMPipeline

    if type(pipeline).__module__.partition(".")[0] == "diffusers":
        return pipeline
    if teacher.condition_kind == "prompts":
        raise InputError(
            f"teacher {type(pipeline).__name__}: a pipeline of code of its own around prompts, "
            "whose encoding this project does not know; expected one of diffusers' own pipelines"
        )
    parts = pipeline_parts(pipeline)
    vae = parts.get("vae") or parts.get("vqvae")
    if parts.get("transformer") is not None:
        return DiTPipeline(parts["transformer"], vae, parts["scheduler"])
    if vae is not None:  # it takes any autoencoder, whatever the name of its argument
        return LDMPipeline(vae, parts["unet"], parts["scheduler"])
    return DDPMPipeline(parts["unet"], parts["scheduler"])


def _trained(spec: TrainedTeacher, root: Path) -> tuple[Any, dict[str, Any]]:
    from diffusers import DDPMPipeline

    device = pick_device()
    manifest = load_manifest(root)
    stored, labels = load_split(root, "train")
    _check(spec, labels)
    classes = len(manifest["class_names"]) if spec.conditional else None
    torch.manual_seed(spec.seed)
    network = build_network(
        stored.shape[1:], spec.channels, spec.layers_per_block, classes, spec.dropout
    )
    if spec.path is not None:
        _start_from(network, str(root / spec.path))
    scheduler = build_scheduler(spec.prediction_type, spec.schedule)
    method = Denoising(network.to(device), scheduler, spec.scales, times=spec.times)
    config = LoopConfig(
        steps=spec.steps,
        learning_rate=spec.learning_rate,
        warmup=spec.warmup,
        ema=spec.ema,
        precision=spec.precision,
        seed=spec.seed,
    )
    state = TrainState(method, config)
    data = kind_of(manifest)
    codec = data.codec(manifest)
    x0 = codec.encode(data.to_float(stored[:])).to(device)
    classes_of = torch.tensor(labels[:], device=device) if spec.conditional else None
    scratch = scratch_for(root, "teacher", spec, manifest)
    training = Training(
        method,
        state,
        _batches(x0, classes_of, spec),
        scratch,
        device,
        checkpoint_every=spec.checkpoint_every,
    )
    with scratch_lock(scratch):
        training.run("teacher")
    network.load_state_dict(state.ema_state("teacher"))
    network.cpu().eval()
    record = {
        "source": "train",
        "null_class": method.null_class,
        "params": spec.model_dump(mode="json"),
        "last": training.history[-1],
    }
    if codec.scaling is not None:
        record["scaling"] = codec.scaling
    return DDPMPipeline(unet=network, scheduler=scheduler), record


def _start_from(network: Any, folder: str) -> None:
    """Weights of another teacher's network; InputError unless every one has its place."""
    parts = pipeline_parts(open_pipeline(folder))
    found = parts.get("unet")
    theirs = {} if found is None else found.state_dict()
    for name, own in network.state_dict().items():
        if name not in theirs or theirs[name].shape != own.shape:
            what = tuple(theirs[name].shape) if name in theirs else "nothing"
            raise InputError(
                f"teacher.path = {folder}: {what} for {name}, the network to train has "
                f"{tuple(own.shape)}; expected the same channels and layers_per_block"
            )
    network.load_state_dict({name: value.float() for name, value in theirs.items()})


def _check(spec: TrainedTeacher, labels: np.ndarray) -> None:
    if spec.conditional and (labels < 0).any():
        unlabelled = int((labels < 0).sum())
        raise InputError(
            f"teacher.conditional = true: {unlabelled} of {len(labels)} images have no label; use "
            "false, or label all"
        )


def _batches(x0: Tensor, labels: Tensor | None, spec: TrainedTeacher) -> Batches:
    def batch(step: int, micro: int, update: int) -> Images:
        rows = torch.randint(
            len(x0), (spec.batch_size,), generator=generator_for("cpu", spec.seed, 1, step, micro)
        )
        rows = rows.to(x0.device)
        return Images(x0[rows], class_condition(None if labels is None else labels[rows]), step)

    return batch


if __name__ == "__main__":
    stage_main(run)
