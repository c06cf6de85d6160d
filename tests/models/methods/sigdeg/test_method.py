"""Sig-DEG's training: step_schedules, windows, gradients, and that it learns."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.common.errors import InputError
from models.methods.base import PathBatch
from models.methods.sigdeg.build import SamplerGains, coarse_steps, gains_for, make_step_schedule
from models.methods.sigdeg.integrator import make_plan
from models.methods.sigdeg.method import SigDEG
from models.methods.sigdeg.pipeline import next_state, path_average, query_state, rollout
from models.sampling.grids import subgrid
from models.sampling.signature import bases, feature_matrix
from models.teachers.conditioning import class_condition
from models.training.loop import LoopConfig, TrainState, train
from tests.models.methods.made import sigdeg, sigdeg_config
from tests.models.tinypaths import batch_of, spec_of, teacher_of
from tests.tiny import perturbed, tiny_teacher, weights

GENERATOR_SEED = 4


def method_of(kind: str = "v_prediction", total: int = 10, **choices: Any) -> SigDEG:
    teacher = teacher_of(kind)
    choices = {"nfe": (4, 2), "conditioning_limit": None} | choices
    return sigdeg(teacher, spec_of(teacher), total, **choices)


def paths_of(method: SigDEG, n: int = 4, step: int = 0) -> PathBatch:
    return batch_of(method.teacher, spec_of(method.teacher), n, step)


def loss_of(method: SigDEG, batch: PathBatch) -> tuple[Tensor, dict[str, Tensor]]:
    return method.loss("student", batch, torch.Generator().manual_seed(GENERATOR_SEED))


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("nfe", [8, 7, 5, 4, 3, 2, 1])
def test_course_joins_the_caches_features(nfe: int, depth: int) -> None:
    """By Chen's identity, they equal those computed from the noise on the coarse intervals
    themselves.
    """
    teacher = tiny_teacher()
    spec = spec_of(teacher, 16, 8, depth)
    step_schedule = make_step_schedule(spec, nfe, sigdeg_config(nfe=(nfe,)))
    z = torch.randn(3, 16, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    own, direct = (
        torch.einsum("ipk,nkchw->nipchw", torch.as_tensor(feature_matrix(parts)), z)
        for parts in (spec.parts, bases(spec.chain, subgrid(spec.grid, nfe), depth))
    )
    found = step_schedule.features(own)
    assert found.shape == (3, nfe, depth + 1, 1, 2, 2)
    torch.testing.assert_close(found, direct, rtol=1e-9, atol=1e-9)
    assert step_schedule.states(torch.arange(9)[None]).tolist() == [
        [int(np.floor(8 * i / nfe + 0.5)) for i in range(nfe + 1)]
    ]
    with pytest.raises(InputError, match="method.nfe 9: expected 1 to 8"):
        make_step_schedule(spec, 9, sigdeg_config())


def test_loss_weights() -> None:
    """(8): by the state's own variance, evenly, or the last state alone."""
    spec = spec_of(tiny_teacher())
    levels = spec.chain.levels
    variance = (0.5 * levels.alpha[[6, 12]]) ** 2 + levels.sigma[[6, 12]] ** 2
    expected = {"marginal": 1 / variance, "uniform": [1, 1], "final": [0, 2]}
    for name, values in expected.items():
        found = make_step_schedule(spec, 2, sigdeg_config(nfe=(2,), weighting=name)).weights
        np.testing.assert_allclose(found, values, rtol=1e-6)


@pytest.mark.parametrize("kind", ["v_prediction", "flow", "dit"])
def test_the_teachers_own_steps_lose_nothing(kind: str) -> None:
    """With a network call per fine step the untrained student is the teacher on the same path."""
    teacher = teacher_of(kind)
    spec = spec_of(teacher, 6, 6, 1)
    method = sigdeg(teacher, spec, nfe=(6,), conditioning_limit=None, window_until=0.0)
    batch = batch_of(teacher, spec, 4)
    loss, terms = loss_of(method, batch)
    scale = float(
        (batch.Y[:, 1:].square().mean((0, 2, 3, 4)) * method.step_schedules[6].weights).mean()
    )
    assert float(loss.detach()) < 1e-9 * max(1.0, scale) and set(terms) == {"path_6"}
    perturbed(method.pipeline.unet)
    assert float(loss_of(method, batch)[0].detach()) > 1e-3


def test_loss_is_the_weighted_error_of_the_rollout() -> None:
    """Full windows: (8) from the pipeline's own rollout; the numbers of steps take turns."""
    method = method_of(window_until=0.0, mmd=0.0)
    for step, nfe in ((0, 4), (1, 2), (2, 4)):
        batch, step_schedule = paths_of(method, step=step), method.step_schedules[nfe]
        xi, Y = step_schedule.features(batch.xi), step_schedule.states(batch.Y)
        states = method.pipeline.rollout(Y[:, 0], xi, None, nfe)[1]
        error = (states - Y)[:, 1:].square().mean((0, 2, 3, 4))
        loss, terms = loss_of(method, batch)
        assert float(loss.detach()) == pytest.approx(
            float((error * step_schedule.weights).mean()), rel=1e-5
        )
        assert list(terms) == [f"path_{nfe}"]


def test_windows_grow_from_teacher_forcing_to_the_whole_path() -> None:
    method = method_of(total=100, window_start=1, window_until=0.5)
    lengths = [method.window(step, 4) for step in range(101)]
    assert lengths[0] == 1 and set(lengths[50:]) == {4} and lengths[49] >= 3
    assert np.all(np.diff(lengths) >= 0) and set(lengths) == {1, 2, 3, 4}
    assert {method_of(window_until=0.0).window(step, 4) for step in (0, 5, 10)} == {4}
    assert method_of(window_start=9).window(0, 2) == 2


@pytest.mark.parametrize("look_ahead", [0.0, 0.5])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_windows_start_from_teacher_states(first: int, look_ahead: float) -> None:
    """Two steps from Y[:, first]; what was denoised before comes from teacher states, without
    gradient.
    """
    method = method_of(order=3, memory=True, look_ahead=look_ahead, predict_order=2)
    perturbed(method.pipeline.unet)
    batch, steps, pipeline = paths_of(method), method.step_schedules[4].steps, method.pipeline
    mean, history = pipeline._mean(batch.Y[:, 0]), []
    with torch.no_grad():
        for i in range(first):
            X = query_state(steps[i], batch.Y[:, i], batch.xi[:, i], history, mean)
            history.insert(0, pipeline.denoise(steps[i], X, batch.xi[:, i], history))
        state, expected = batch.Y[:, first], []
        for i in (first, first + 1):
            X = query_state(steps[i], state, batch.xi[:, i], history, mean)
            D = pipeline.denoise(steps[i], X, batch.xi[:, i], history)
            state = next_state(steps[i], state, path_average(steps[i], D, history), batch.xi[:, i])
            history.insert(0, D)
            expected.append(state)
    found = method._window(method.step_schedules[4], batch.Y, batch.xi, None, first, 2)
    torch.testing.assert_close(found, torch.stack(expected, 1), rtol=1e-5, atol=1e-5)
    given = batch.Y.clone().requires_grad_()
    method._window(method.step_schedules[4], given, batch.xi, None, first, 2).sum().backward()
    assert given.grad is not None
    reached = given.grad.abs().sum((0, 2, 3, 4)) > 0
    assert reached.tolist() == [i == first for i in range(5)]


def test_teacher_forcing_covers_every_step() -> None:
    """One-step windows start anywhere; the place depends on the generator alone."""
    method = method_of(window_start=1, window_until=1.0, order=1, nfe=(4,))
    batch, step_schedule = paths_of(method), method.step_schedules[4]
    errors = []
    for i in range(4):
        one = method._window(step_schedule, batch.Y, batch.xi, None, i, 1)
        errors.append(
            float(
                (one[:, 0] - batch.Y[:, i + 1]).square().mean().detach() * step_schedule.weights[i]
            )
        )
    seen = {}
    for seed in range(30):
        loss = float(method.loss("student", batch, torch.Generator().manual_seed(seed))[0].detach())
        place = int(np.argmin(np.abs(np.array(errors) - loss)))
        assert loss == pytest.approx(errors[place], rel=1e-4)
        seen[place] = seed
    assert set(seen) == {0, 1, 2, 3}


def gradients(method: SigDEG, batch: PathBatch) -> dict[str, Tensor]:
    method.pipeline.unet.zero_grad()
    loss_of(method, batch)[0].backward()
    named = method.pipeline.unet.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("kind", ["v_prediction", "dit"])
def test_gradient_checkpointing_changes_nothing(kind: str) -> None:
    choices = {"window_until": 0.0, "memory": True, "order": 3, "look_ahead": 0.5, "mmd": 0.1}
    plain, saving = (
        method_of(kind, **choices),
        method_of(kind, gradient_checkpointing=True, **choices),
    )
    saving.pipeline.unet.load_state_dict(perturbed(plain.pipeline.unet).state_dict())
    batch = paths_of(plain)
    expected, found = gradients(plain, batch), gradients(saving, batch)
    assert expected.keys() == found.keys() and len(found) > 20
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max())
        )


def test_gradient_is_that_of_finite_differences() -> None:
    """Through the whole recurrence, along one direction, in double precision."""
    method = method_of(window_until=0.0, memory=True, order=2, look_ahead=0.5)
    method.pipeline.unet.double()
    batch = paths_of(method)
    batch = batch._replace(Y=batch.Y.double(), xi=batch.xi.double())
    method.pipeline.to(torch.float64)
    found = gradients(method, batch)
    torch.manual_seed(0)
    direction = {name: torch.randn_like(value) for name, value in found.items()}
    slope = sum(float((direction[name] * value).sum()) for name, value in found.items())
    start = weights(method.pipeline.unet)

    def at(distance: float) -> float:
        moved = {name: start[name] + distance * direction[name] for name in direction}
        method.pipeline.unet.load_state_dict({**start, **moved})
        states = method._window(method.step_schedules[4], batch.Y, batch.xi, None, 0, 4)
        error = (states - batch.Y[:, 1:]).square().mean((0, 2, 3, 4)).detach()
        return float((error * method.step_schedules[4].weights).mean())

    assert (at(1e-5) - at(-1e-5)) / 2e-5 == pytest.approx(slope, rel=2e-3)


def trained(method: SigDEG, batch: PathBatch, steps: int, rate: float) -> list[float]:
    """Losses of ``steps`` updates on one batch."""
    state = TrainState(method, LoopConfig(steps=steps, learning_rate=rate, schedule="constant"))
    reports = train(method, lambda step, micro, update: batch._replace(step=step), state)
    return [report.terms["student/loss"] for report in reports]


@pytest.mark.parametrize(
    "choices",
    [{}, {"memory": True, "look_ahead": 0.4}, {"trainable": "lora", "lora_rank": 4}],
    ids=["plain", "memory", "lora"],
)
def test_it_learns_eight_paths(choices: dict[str, Any]) -> None:
    method = method_of(nfe=(2,), window_until=0.0, **choices)
    losses = trained(method, paths_of(method, 8), 50, 3e-3)
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def test_the_distribution_terms_are_added() -> None:
    """(9) on windows that end at clean data, with their weights; 0 features distance to oneself."""
    both = {"mmd": 0.3, "features": 0.2}
    method = method_of(nfe=(4,), window_until=0.0, **both)
    loss, terms = loss_of(method, paths_of(method))
    assert set(terms) == {"path_4", "mmd_4", "features_4"}
    total = terms["path_4"] + 0.3 * terms["mmd_4"] + 0.2 * terms["features_4"]
    assert float(loss.detach()) == pytest.approx(float(total.detach()), rel=1e-6)
    assert float(terms["features_4"].detach()) > 0
    batch = paths_of(method, 6)
    images = batch.Y[:, -1].requires_grad_()
    mmd, features = method._distribution(
        images, images.detach(), batch, torch.Generator().manual_seed(GENERATOR_SEED)
    )
    assert float(features.detach()) == pytest.approx(0, abs=1e-6) and float(mmd.detach()) < 0
    mmd.backward()
    assert images.grad is not None and images.grad.abs().max() > 0
    early = method_of(nfe=(4,), window_until=1.0, **both)
    seen = {
        frozenset(early.loss("student", paths_of(early), torch.Generator().manual_seed(s))[1])
        for s in range(12)
    }
    assert seen == {frozenset({"path_4"}), frozenset({"path_4", "mmd_4", "features_4"})}


def numbers_of(method: SigDEG, batch: PathBatch) -> tuple[float, dict[str, float]]:
    loss, terms = loss_of(method, batch)
    return float(loss.detach()), {name: float(value.detach()) for name, value in terms.items()}


def test_real_images_take_the_teachers_place_in_the_mmd() -> None:
    """The paired terms stay as they are; there may be more real images than paths; near ones score
    better.
    """
    method = method_of(nfe=(4,), window_until=0.0, mmd=0.3, features=0.2)
    batch = paths_of(method, 6)
    plain = numbers_of(method, batch)[1]
    images = torch.stack([batch.Y[:, -1], batch.Y[:, -1].flip(-1)], 1).flatten(0, 1)
    near, far = batch._replace(real=images), batch._replace(real=3.0 - images)
    scores = []
    for given in (near, far):
        loss, terms = numbers_of(method, given)
        assert terms["path_4"] == plain["path_4"]
        assert terms["features_4"] == pytest.approx(plain["features_4"], rel=1e-6)
        assert loss == pytest.approx(
            terms["path_4"] + 0.3 * terms["mmd_4"] + 0.2 * terms["features_4"], rel=1e-6
        )
        scores.append(terms["mmd_4"])
    assert scores[0] < scores[1] and plain["mmd_4"] not in scores
    assert numbers_of(method, near)[1]["mmd_4"] == scores[0]
    off = method_of(nfe=(4,), window_until=0.0, features=0.2)
    assert numbers_of(off, near) == numbers_of(off, batch)


def test_calibrated_gains_are_of_their_own_numbers_of_steps() -> None:
    """They replace the plain ones in plans; a number of steps without any is refused, since gains
    of another would keep it from the teacher.
    """
    teacher = tiny_teacher()
    spec, numbers = spec_of(teacher), SamplerGains(0.5, 1.6, 0.2)
    config = sigdeg_config(nfe=(2,), look_ahead=0.3)
    parts = bases(spec.chain, subgrid(spec.grid, 2), 2)
    expected = make_plan(spec.chain, parts, 2, 0.5, 2, gain=1.6, last_gain=0.2)
    assert coarse_steps(spec, 2, config, numbers) == expected
    assert make_step_schedule(spec, 2, config, numbers).steps == expected
    plain = make_plan(spec.chain, parts, 2, 0.3, 2)
    assert make_step_schedule(spec, 2, config).steps == plain != expected
    diagnostics = {"gains_by_nfe": {"2": asdict(numbers)}}
    method = sigdeg(teacher, spec, nfe=(2,), look_ahead=0.3, diagnostics=diagnostics)
    assert method.step_schedules[2].steps == method.pipeline.plan(2) == expected
    assert method.pipeline.untrained(method.pipeline.unet).plan(2) == plain
    assert gains_for(2, config, {2: numbers}) == numbers
    assert gains_for(4, config, {}) == SamplerGains(0.3)
    with pytest.raises(
        InputError, match=r"4 steps: the gains were calibrated for \[2\] steps only"
    ):
        sigdeg(teacher, spec, nfe=(4, 2), diagnostics=diagnostics)


@pytest.mark.parametrize("trainable", ["full", "lora", "input"])
def test_only_what_is_named_trains(trainable: str) -> None:
    method = method_of(trainable=trainable, lora_rank=2, window_until=0.0, memory=True)
    before, teacher = weights(method.pipeline.unet), weights(method.teacher.network)
    trained(method, paths_of(method), 3, 1e-2)
    after = weights(method.pipeline.unet)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    first = {"conv_in.weight", "conv_in.bias"}
    adapters = {name for name in changed if "lora_" in name}
    assert first <= changed
    if trainable != "full":
        assert changed - adapters == first and bool(adapters) == (trainable == "lora")
    assert all(
        torch.equal(teacher[name], value) for name, value in weights(method.teacher.network).items()
    )
    extra = after["conv_in.weight"][:, 1:] - before["conv_in.weight"][:, 1:]
    assert (extra.abs().sum((0, 2, 3)) > 0).all() and extra.shape[1] == 3 + 1 + 1


def test_dropped_features_reach_nothing() -> None:
    """In the last interval w = 0: its column of xi is no noise of the path, and the student must
    not see it.
    """
    method = method_of(window_until=0.0)
    perturbed(method.pipeline.unet)
    batch = paths_of(method)
    assert method.step_schedules[4].steps[-1].kept[0] == 0
    other = batch.xi.clone()
    other[:, -1, 0] = 7.0
    expected, found = (
        method.pipeline.rollout(batch.Y[:, 0], xi, None, 4)[0] for xi in (batch.xi, other)
    )
    assert torch.equal(expected, found)


def test_conditioning_limit_bounds_the_start() -> None:
    """At t = T an error of epsilon is amplified by sigma / alpha, here above 100, in D: with the
    limit by no more than the limit.
    """
    limit = 5.0
    free, limited = method_of("epsilon"), method_of("epsilon", conditioning_limit=limit)
    batch, step = paths_of(free), free.step_schedules[4].steps[0]
    amplification = step.sigma / step.alpha
    assert amplification > 100
    change = perturbed(free.pipeline.unet).state_dict()
    limited.pipeline.unet.load_state_dict(change)
    shifts = []
    with torch.no_grad():
        base = free.teacher.denoise(batch.Y[:, 0], step.t)
        for method in (free, limited):
            D = method.pipeline.denoise(step, batch.Y[:, 0], batch.xi[:, 0], [])
            shifts.append(float((D - base).square().mean().sqrt()))
    assert shifts[0] / shifts[1] == pytest.approx(amplification / limit, rel=1e-3)
    assert free.pipeline.frozen is None and limited.pipeline.frozen is limited.teacher.network


def test_labels_and_samples() -> None:
    """A conditional student sees its labels, and :meth:`sample` is the pipeline's rollout."""
    method = method_of("conditional", nfe=(4,), window_until=0.0)
    batch = paths_of(method)
    right = float(loss_of(method, batch)[0].detach())
    assert batch.condition is not None
    wrong = batch._replace(condition=class_condition((batch.condition["class_labels"] + 1) % 3))
    assert float(loss_of(method, wrong)[0].detach()) != pytest.approx(right, rel=1e-3)
    x0 = method.sample(batch.Y[:, 0], batch.condition, nfe=4, xi=batch.xi)
    steps, pipeline = method.step_schedules[4].steps, method.pipeline
    with torch.no_grad():
        states = rollout(
            lambda s, X, z, h: pipeline.denoise(s, X, z, h, batch.condition),
            steps,
            batch.Y[:, 0],
            batch.xi,
            pipeline._mean(batch.Y[:, 0]),
        )
    assert torch.equal(x0, states[:, -1])
    assert method.ema == ("student",) and set(method.networks) == {"student"}


def test_dropout_is_off() -> None:
    """The student's path must be the teacher's: both are deterministic given the noise."""
    teacher = tiny_teacher()
    for module in teacher.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    choices = {"nfe": (4,), "conditioning_limit": None, "window_until": 0.0}
    method = sigdeg(teacher, spec_of(teacher), **choices)
    batch = batch_of(teacher, spec_of(teacher), 4)
    assert method.pipeline.unet.training
    assert float(loss_of(method, batch)[0].detach()) == float(loss_of(method, batch)[0].detach())
