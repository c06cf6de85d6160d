from __future__ import annotations

import time
from pathlib import Path

import torch

from models.methods.base import MethodContext
from models.methods.sigdeg.config import SigDEGConfig
from models.methods.sigdeg.method import SigDEG
from scripts.benchmark import timing
from tasks.config.schema import Params
from tasks.data.trajectories import path_spec
from tests.tiny import tiny_teacher

CPU = torch.device("cpu")


def test_samplers_take_turns_in_both_directions() -> None:
    seen: list[str] = []

    def sampler(name: str, seconds: float):
        def call() -> None:
            seen.append(name)
            time.sleep(seconds)

        return call

    samplers = {("fast", 1): sampler("fast", 0.0), ("slow", 2): sampler("slow", 0.02)}
    times = timing.in_turns(samplers, CPU, rounds=3)
    assert "".join(name[0] for name in seen) == "fs" + "sf" + "fs" + "sf"
    assert {key: len(own) for key, own in times.items()} == {("fast", 1): 3, ("slow", 2): 3}
    assert min(times["slow", 2]) > 20 > min(times["fast", 1])


def test_every_sampler_makes_its_calls(tmp_path: Path) -> None:
    """Of the teacher's network, or of the student's own."""
    teacher = tiny_teacher()
    params = Params()
    few = {"trajectories": {"steps": 8, "intervals": 2}, "method": {"nfe": (2, 1)}}
    few["evaluation"] = {"baselines": ("ddim", "heun")}
    sections = {
        name: getattr(params, name).model_copy(update=values) for name, values in few.items()
    }
    params = params.model_copy(update=sections)
    config = SigDEGConfig(nfe=(2, 1), calibrate=False)
    context = MethodContext(teacher, config, path_spec(params.trajectories, teacher))
    SigDEG.untrained(context).save_pretrained(tmp_path / "student")
    folders = {"sigdeg": tmp_path / "student"}
    samplers = timing.samplers_of(teacher, params, folders, (1, 2, 4), CPU)
    assert set(samplers) == {
        ("teacher", 1), ("sigdeg", 1), ("sigdeg", 2),
        *((name, nfe) for name in ("ddim", "heun") for nfe in (1, 2, 4)),
    }  # fmt: skip
    seen: list[int] = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: (
            seen.append(len(inputs[0])) if type(module).__name__ == "UNet2DModel" else None
        )
    )
    try:
        for (_, nfe), sample in samplers.items():
            seen.clear()
            with torch.inference_mode():
                sample()
            assert seen == [timing.BATCH] * nfe
    finally:
        hook.remove()
