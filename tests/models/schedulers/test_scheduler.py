"""Configurations, errors, and what a pipeline may do between two steps."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    PNDMScheduler,
    ScoreSdeVeScheduler,
    UniPCMultistepScheduler,
)
from scipy.stats import kstest

from models.schedulers.export import FILES, export_scheduler
from models.schedulers.sigdeg_scheduler import SigDEGScheduler
from tests.models.schedulers.driving import close, run, start, wavy
from tests.tiny import tiny_unet

SOURCES: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddpm": (DDPMScheduler(), {"process": "vp", "clip_sample": True}),
    "pndm": (PNDMScheduler(beta_end=0.012), {"process": "vp", "clip_sample": False}),
    "dpm": (
        DPMSolverMultistepScheduler(use_karras_sigmas=True, thresholding=True),
        {"process": "vp", "thresholding": True, "clip_sample": False},
    ),
    "euler": (
        EulerDiscreteScheduler(prediction_type="v_prediction"),
        {"process": "vp", "prediction_type": "v_prediction", "sigma_max": 80.0},
    ),
    "flow": (
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        {"process": "flow", "prediction_type": "flow_prediction", "shift": 3.0},
    ),
    "heun": (FlowMatchHeunDiscreteScheduler(shift=2.0), {"process": "flow", "shift": 2.0}),
    "unipc_flow": (
        UniPCMultistepScheduler(
            use_flow_sigmas=True, flow_shift=5.0, prediction_type="flow_prediction"
        ),
        {"process": "flow", "shift": 5.0, "clip_sample": False},
    ),
    "edm": (EDMEulerScheduler(sigma_max=60.0), {"process": "edm", "sigma_max": 60.0}),
    "edm_dpm": (EDMDPMSolverMultistepScheduler(rho=5.0), {"process": "edm", "rho": 5.0}),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("way", ["memory", "file", "short file"])
def test_other_schedulers_configurations(tmp_path: Path, name: str, way: str) -> None:
    """In memory diffusers notes no class; in old files keys with default values may be missing."""
    source, expected = SOURCES[name]
    ours = SigDEGScheduler.from_config(source.config, eta=0.5)
    if way != "memory":
        source.save_pretrained(tmp_path)
        file = tmp_path / "scheduler_config.json"
        if way == "short file":
            unset = source.config["_use_default_values"]
            written = json.loads(file.read_text())
            file.write_text(json.dumps({k: v for k, v in written.items() if k not in unset}))
        ours = SigDEGScheduler.from_pretrained(tmp_path, eta=0.5)
    assert {key: ours.config[key] for key in expected} == expected
    assert ours.config.eta == 0.5
    back = type(source).from_config(ours.config)
    same = {k for k in source.config if k[0] != "_" and k not in ("sigma_min", "sigma_max")}
    assert {k: back.config[k] for k in same} == {k: source.config[k] for k in same}


def test_round_trip(tmp_path: Path) -> None:
    choices = {"eta": 0.7, "points": [0, 3, 10], "coarse_grid": "given", "chain_steps": 10}
    by_steps = {"2": {"look_ahead": 0.1, "gain": 1.2}}
    ours = SigDEGScheduler.from_config(PNDMScheduler().config, by_steps=by_steps, **choices)
    ours.save_pretrained(tmp_path)
    again = SigDEGScheduler.from_pretrained(tmp_path)
    for scheduler in (again, SigDEGScheduler.from_config(ours.config)):
        ours.set_timesteps(2)
        scheduler.set_timesteps(2)
        assert scheduler.plan == ours.plan
        assert scheduler.config.skip_prk_steps == ours.config.skip_prk_steps


REFUSED = [
    (ScoreSdeVeScheduler().config, "expected one with discrete times and a beta schedule"),
    (
        EulerDiscreteScheduler(timestep_type="continuous", sigma_min=0.002, sigma_max=700.0).config,
        "expected one with discrete times",
    ),
    (FlowMatchEulerDiscreteScheduler(invert_sigmas=True).config, "expected sigma = 1 to be noise"),
    (EDMEulerScheduler(final_sigmas_type="sigma_min").config, "expected zero"),
    (DDIMScheduler(rescale_betas_zero_snr=True).config, "expected v_prediction or sample"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_refused_configurations(config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SigDEGScheduler.from_config(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"process": "ve"}, "expected vp, flow or edm"),
        ({"prediction_type": "flow_prediction"}, "expected epsilon, v_prediction, sample"),
        ({"process": "flow", "prediction_type": "epsilon"}, "expected flow_prediction"),
        ({"eta": 1.5}, "eta = 1.5: expected 0 to 1"),
        ({"signature_depth": 0}, "signature_depth = 0: expected 1 to 6"),
        ({"solver_order": 4}, "solver_order = 4: expected 1 to 3"),
        ({"predict_order": 0}, "predict_order = 0: expected 1 to 3"),
        ({"chain_steps": 1}, "chain_steps = 1: expected 2 to 1000"),
        ({"chain_steps": 2000}, "chain_steps = 2000: expected 2 to 1000"),
        ({"chain_step": 50}, "unknown arguments chain_step"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SigDEGScheduler.from_config(SigDEGScheduler().config, **arguments)


FLOW = {"process": "flow"}


@pytest.mark.parametrize(
    ("settings", "call", "message"),
    [
        ({}, {}, "expected num_inference_steps, timesteps or sigmas"),
        ({}, {"num_inference_steps": 0}, "expected 1 to chain_steps = 100"),
        ({}, {"num_inference_steps": 101}, "expected 1 to chain_steps = 100"),
        ({}, {"sigmas": [1.0, 0.5]}, "sigmas: no levels of vp models"),
        ({"process": "edm"}, {"timesteps": [1.0, 0.5]}, "timesteps: no levels of edm models"),
        ({}, {"timesteps": [5, 10]}, "expected falling values"),
        ({}, {"timesteps": [1000, 10]}, "expected falling values from 999 at most"),
        ({}, {"timesteps": []}, "expected one or more values"),
        ({}, {"timesteps": [5, 1], "num_inference_steps": 3}, "expected 3 values"),
        (FLOW, {"sigmas": [1.0, 0.0]}, "expected falling values"),
        (FLOW, {"sigmas": [1.0], "timesteps": [999.0]}, "not both"),
        (FLOW | {"use_dynamic_shifting": True}, {"num_inference_steps": 4}, "mu: expected a num"),
        ({"coarse_grid": "even"}, {"num_inference_steps": 4}, "expected logsnr, index or given"),
        ({"coarse_grid": "given"}, {"num_inference_steps": 4}, "expected increasing fine indices"),
        ({"look_ahead": 1.2}, {"num_inference_steps": 4}, "look_ahead = 1.2: expected 0 to 1"),
        (
            {"by_steps": {"4": {"gains": 1.0}}},
            {"num_inference_steps": 4},
            "expected keys among",
        ),
    ],
)
def test_runs_that_cannot_be(settings: dict[str, Any], call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SigDEGScheduler(**settings).set_timesteps(**call)


def test_steps_out_of_turn() -> None:
    scheduler = SigDEGScheduler()
    x = start()
    with pytest.raises(ValueError, match="call set_timesteps first"):
        scheduler.step(x, 999, x)
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="time 998.0: expected one of"):
        scheduler.step(x, 998, x)
    first, second, third = scheduler.timesteps
    scheduler.step(x, first, x)
    with pytest.raises(ValueError, match=f"step at time {float(third)}: expected {float(second)}"):
        scheduler.step(x, third, x)
    scheduler.step(x, second, x)
    scheduler.step(x, third, x)
    with pytest.raises(ValueError, match="the run is over"):
        scheduler.step(x, third, x)
    with pytest.raises(ValueError, match="network output"):
        scheduler.set_timesteps(3)
        scheduler.step(x[:, :1], first, x)


@pytest.mark.parametrize("look_ahead", [0.0, 0.5])
def test_changes_between_steps_are_carried_on(look_ahead: float) -> None:
    """What a callback adds to the returned state is added to the state Y, in X's measure."""
    scheduler = SigDEGScheduler(look_ahead=look_ahead, chain_steps=30)
    scheduler.set_timesteps(4)
    generator = torch.Generator().manual_seed(0)
    xi = torch.randn(1, 4, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    scheduler.set_path(xi.expand(3, -1, -1, -1, -1, -1))
    X, plan = start(), scheduler.plan
    D: list[torch.Tensor] = []
    Y = X
    for i, (t, step) in enumerate(zip(scheduler.timesteps, plan, strict=True)):
        shift = 0.1 * torch.ones_like(X) if i == 2 else torch.zeros_like(X)
        result = scheduler.step(wavy(X + shift, t), t, X + shift, return_dict=False)
        Y = Y + shift / step.a
        Dbar = result[1] + sum(q * (result[1] - d) for q, d in zip(step.mix, D, strict=False))
        Y = step.A * Y + step.B * Dbar + step.n[0] * xi[:, i, 0]
        D.insert(0, result[1])
        X = result[0]
        if i < 3:
            ahead = plan[i + 1]
            expected = ahead.a * Y + sum(m * xi[:, i + 1, p] for p, m in enumerate(ahead.m))
            expected = expected + ahead.b * sum(
                p * d for p, d in zip(ahead.predict, D, strict=False)
            )
            close(X, expected, 1e-9)
    close(X, Y, 1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_state_in_float32(dtype: torch.dtype) -> None:
    """A model that answers in half precision gets half-precision states; errors do not add up."""
    states = []
    for kind in (dtype, torch.float32):
        scheduler = SigDEGScheduler(prediction_type="sample", chain_steps=50)
        scheduler.set_timesteps(10)
        path = torch.randn(3, 10, 3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
        scheduler.set_path(path)
        x = start(dtype=torch.float32).to(kind)
        states.append(run(scheduler, x, lambda v, t: torch.tanh(v.float()).to(v.dtype), seed=None))
    assert states[0].dtype == dtype
    close(states[0].float()[-1], states[1][-1], 0.03)


@pytest.mark.parametrize("process", ["vp", "flow", "edm"])
def test_add_noise_is_that_of_the_models_own_scheduler(process: str) -> None:
    other: Any = {
        "vp": DDPMScheduler(),
        "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "edm": EDMEulerScheduler(),
    }[process]
    ours = SigDEGScheduler.from_config(other.config)
    other.set_timesteps(8)
    x, noise = start(dtype=torch.float32), start(seed=1, dtype=torch.float32)
    times = other.timesteps[[0, 3, 7]]
    if process == "flow":
        expected = other.scale_noise(x, times, noise)
        close(ours.scale_noise(x, times, noise), expected, 1e-5)
    else:
        close(ours.add_noise(x, noise, times), other.add_noise(x, noise, times), 1e-5)


@pytest.mark.parametrize("look_ahead", [0.0, 0.6])
@pytest.mark.parametrize("process", ["vp", "flow", "edm"])
def test_a_run_from_the_middle_is_a_chain_of_its_own(process: str, look_ahead: float) -> None:
    """It begins where the network is asked, so its first state is at that time's noise level."""
    scheduler = SigDEGScheduler(process=process, chain_steps=40, look_ahead=look_ahead)
    scheduler.set_timesteps(5)
    whole = scheduler.plan
    scheduler.set_begin_index(2)
    scheduler.step(start(), scheduler.timesteps[2], start())
    rest = scheduler.plan
    assert [step.t for step in rest] == [step.t for step in whole[2:]]
    assert (rest[0].a, rest[0].b, rest[0].predict) == (1.0, 0.0, ())
    if look_ahead == 0.0:  # later steps differ in the history alone
        assert [(s.A, s.B, s.n) for s in rest] == [(s.A, s.B, s.n) for s in whole[2:]]
    # with no image at all, what is left of the noise has the levels' own variance: exactly
    variance = rest[0].sigma ** 2
    for step in rest[:-1]:
        variance = step.A**2 * variance + sum(n**2 for n in step.n)
    last = whole[-1]
    if look_ahead == 0.0:
        assert variance == pytest.approx(last.sigma**2, rel=1e-6)


@pytest.mark.parametrize("process", ["vp", "flow", "edm"])
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_law_of_the_noise(process: str, eta: float) -> None:
    """Without an image the state is N(0, sigma^2) at every level, and the noise of two steps is
    independent."""
    scheduler = SigDEGScheduler(process=process, eta=eta, chain_steps=50, look_ahead=0.0)
    scheduler.set_timesteps(6)
    plan = scheduler.plan
    generator = torch.Generator().manual_seed(0)
    x = plan[0].sigma * torch.randn(20_000, 1, 2, 1, generator=generator)
    nothing = {"vp": lambda v: v / plan[i].sigma, "flow": lambda v: v / plan[i].sigma}
    nothing["edm"] = lambda v: -0.5 * v / (plan[i].sigma * (plan[i].sigma ** 2 + 0.25) ** 0.5)
    increments = []
    for i, t in enumerate(scheduler.timesteps):
        before = x
        x = scheduler.step(nothing[process](x), t, x, generator=generator).prev_sample
        if i < 5:
            sample = (x / plan[i + 1].sigma).flatten().numpy()
            assert kstest(sample, "norm").pvalue > 1e-3
            increments.append(((x - plan[i].A * before) / plan[i].n[0]).flatten().numpy())
    assert float(x.abs().max()) < 1e-3
    correlation = np.corrcoef(increments)
    assert np.abs(correlation - np.eye(5)).max() < 0.03


def test_noise_without_a_generator_follows_seed_and_start() -> None:
    states = {}
    for name, seed, first in [("one", 0, 0), ("again", 0, 0), ("seed", 1, 0), ("start", 0, 1)]:
        scheduler = SigDEGScheduler(seed=seed, prediction_type="sample")
        scheduler.set_timesteps(4)
        # a network that says nothing, so that the states differ by noise alone
        x = start(seed=first)
        states[name] = run(scheduler, x, lambda v, t: 0 * v, seed=None)[2]
    torch.testing.assert_close(states["again"], states["one"], rtol=0, atol=0)
    for other in ("seed", "start"):
        correlation = np.corrcoef(states[other].flatten(), states["one"].flatten())[0, 1]
        assert abs(correlation) < 0.4
    half = SigDEGScheduler(prediction_type="sample")
    half.set_timesteps(4)
    assert len(run(half, start()[:1], seed=None)) == 5


def folder_of(tmp_path: Path, **choices: Any) -> tuple[Path, Any]:
    scheduler = SigDEGScheduler.from_config(DDPMScheduler().config, **choices)
    pipe = DDPMPipeline(unet=tiny_unet(), scheduler=scheduler)
    folder = tmp_path / "model"
    pipe.save_pretrained(folder)
    export_scheduler(scheduler, folder)
    return folder, pipe


def sampled(pipe: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 4, "output_type": "np", "batch_size": 2}
    return np.asarray(pipe(generator=torch.Generator().manual_seed(0), **call).images)


def test_a_folder_brings_its_scheduler(tmp_path: Path) -> None:
    folder, pipe = folder_of(tmp_path, eta=0.8)
    opened = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert type(opened.scheduler).__name__ == "SigDEGScheduler"
    assert type(opened.scheduler) is not SigDEGScheduler  # the folder's own code
    np.testing.assert_array_equal(sampled(opened), sampled(pipe))


@pytest.mark.slow
def test_a_folder_opens_without_the_project_and_without_iisignature(tmp_path: Path) -> None:
    folder, pipe = folder_of(tmp_path)
    away = tmp_path / "away"
    shutil.move(folder, away)
    program = (
        "import sys, torch, numpy as np\n"
        "sys.modules['iisignature'] = sys.modules['models'] = None\n"
        "from diffusers import DiffusionPipeline\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(away)!r}, trust_remote_code=True)\n"
        "call = {'num_inference_steps': 4, 'output_type': 'np', 'batch_size': 2}\n"
        "images = pipe(generator=torch.Generator().manual_seed(0), **call).images\n"
        "np.save('images.npy', images)\n"
    )
    environment = {"HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin"}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), sampled(pipe), atol=1e-5)


def test_the_travelling_files_import_each_other_and_libraries_only() -> None:
    folder = Path(sys.modules[SigDEGScheduler.__module__].__file__ or "").parent
    for name in FILES:
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            if line.startswith(("import ", "from ")):
                root = line.split()[1].split(".")[0]
                own = f"{line.split()[1].lstrip('.')}.py" in FILES
                assert own or root in {"numpy", "torch", "diffusers"} | sys.stdlib_module_names


@pytest.mark.parametrize("mu", [0.1, 0.459375, 0.7, 1.15])
def test_a_dynamic_shift_keeps_pure_noise_pure(mu: float) -> None:
    """FLUX at small sizes: 1 - 1e-16 in its place has a log-SNR, and other weights follow."""
    scheduler = SigDEGScheduler(process="flow", use_dynamic_shifting=True, chain_steps=12)
    scheduler.set_timesteps(2, mu=mu)
    assert scheduler.plan[0].alpha == 0.0 and float(scheduler.timesteps[0]) == 1000.0
