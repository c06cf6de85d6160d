"""Consistency distillation: the boundary condition, the target, its average, and a training that
improves.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from models.common.errors import InputError
from models.methods.base import MethodContext, PathBatch
from models.methods.consistency import Consistency, boundary_weights, distance
from models.methods.consistency_config import ConsistencyConfig
from models.sampling.trajectories import PathSpec
from models.teachers.base import Denoiser
from models.training.loop import LoopConfig, TrainState, train
from tests.models.tinypaths import KINDS, batch_of, series_teacher, spec_of, teacher_of
from tests.tiny import perturbed, weights


def consistency(
    teacher: Denoiser, spec: PathSpec | None = None, checkpointing: bool = False, **choices: Any
) -> Consistency:
    config = ConsistencyConfig(**{"nfe": (4, 2)} | choices)
    spec = spec or spec_of(teacher, eta=0.0)
    return Consistency(MethodContext(teacher, config, spec, gradient_checkpointing=checkpointing))


def loss_of(method: Consistency, batch: PathBatch, seed: int = 0) -> Tensor:
    return method.loss("student", batch, torch.Generator().manual_seed(seed))[0]


def test_the_boundary_is_the_identity() -> None:
    """Exactly, at any alpha; far from it the answer is the denoised image, at pure noise too."""
    for alpha in (1.0, 0.7):
        skip, out = boundary_weights(alpha, 0.002 * alpha, 0.002, 0.5)
        assert out == 0.0 and skip == 1 / alpha
    for alpha, sigma in ((0.006, 1.0), (0.1, 1.0), (0.8, 0.6)):
        skip, out = boundary_weights(alpha, sigma, 0.002, 0.5)
        assert abs(skip) < 0.01 and out == pytest.approx(1, abs=0.01)
    assert boundary_weights(0.0, 1.0, 0.002, 0.5) == (0.0, 1.0)


@pytest.mark.parametrize("s", [0.0021, 0.02, 0.5, 3.0, 80.0])
def test_the_weights_are_the_papers_around_an_edm_network(s: float) -> None:
    """f = c_skip x + c_out F with D = k_skip x + k_out F, written out; alpha scales x alone."""
    d, e, x, F = 0.5, 0.002, 1.7, -0.3
    c_skip = d**2 / ((s - e) ** 2 + d**2)
    c_out = d * (s - e) / math.sqrt(d**2 + s**2)
    D = d**2 / (s**2 + d**2) * x + s * d / math.sqrt(s**2 + d**2) * F
    for alpha in (1.0, 0.4):
        skip, out = boundary_weights(alpha, s * alpha, e, d)
        assert skip * alpha * x + out * D == pytest.approx(c_skip * x + c_out * F, rel=1e-9)


@pytest.mark.parametrize("kind", [*KINDS, "series"])
def test_one_answer_in_training_and_sampling(kind: str) -> None:
    """f of rows at their own times is that of the pipeline at one time after the other."""
    teacher = series_teacher() if kind == "series" else teacher_of(kind)
    spec = spec_of(teacher, eta=0.0)
    method, batch = consistency(teacher, spec), batch_of(teacher, spec, 4)
    perturbed(method.pipeline.unet)
    x, i = batch.Y[:, 2], torch.tensor([0, 3, 1, 3])
    with torch.no_grad():
        found = method.answer("student", x, i, batch.condition)
        for row, level in enumerate(method.pipeline.levels(4)[k] for k in i):
            rows = slice(row, row + 1)
            given = None if batch.condition is None else batch.condition[rows]
            expected = method.pipeline.denoise(level, x[rows], given)
            torch.testing.assert_close(found[rows], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("given", "expected"), [(None, 1.0), (0.3, 0.3)])
def test_the_datas_spread_is_the_teachers(given: float | None, expected: float) -> None:
    """1 for scaled series, whose scaling travels with the student."""
    teacher = series_teacher()
    method = consistency(teacher, sigma_data=given)
    for level in method.pipeline.levels(4):
        weights = boundary_weights(level.alpha, level.sigma, 0.002, expected)
        assert (level.skip, level.out) == weights
    x0 = torch.randn(3, 2, 16)
    assert method.pipeline.config.scaling == teacher.codec.scaling
    torch.testing.assert_close(method.pipeline.decode(x0), teacher.decode(x0))


def test_levels_of_fewer_steps_are_those_of_the_grid() -> None:
    method = consistency(teacher_of("v_prediction"))
    four, two = ([level.t for level in method.pipeline.levels(n)] for n in (4, 2))
    assert two == four[::2] and method.pipeline.config.noise == "fresh"


def test_the_target_is_the_averages_answer_without_gradient() -> None:
    """At the next state of the same path and at its time; the clean end is its own target."""
    teacher = teacher_of("v_prediction")
    spec = spec_of(teacher, eta=0.0)
    method, batch = consistency(teacher, spec), batch_of(teacher, spec, 64)
    perturbed(method.networks["target"])
    i = torch.randint(4, (64,), generator=torch.Generator().manual_seed(0))
    rows = torch.arange(64)
    assert set(i.tolist()) == {0, 1, 2, 3}
    target = method.target(batch.Y[rows, i + 1], i + 1, None)
    assert not target.requires_grad
    last = i == 3
    assert torch.equal(target[last], batch.Y[last, -1])
    with torch.no_grad():
        expected = method.answer("target", batch.Y[~last, i[~last] + 1], i[~last] + 1, None)
        answer = method.answer("student", batch.Y[rows, i], i, None)
    torch.testing.assert_close(target[~last], expected, rtol=1e-4, atol=1e-5)
    loss = loss_of(method, batch)
    assert float(loss.detach()) == pytest.approx(float((answer - target).square().mean()), rel=1e-4)
    torch.autograd.backward(loss)
    assert all(p.grad is not None for p in method.networks["student"].parameters())
    assert all(p.grad is None for p in method.networks["target"].parameters())
    assert all(p.grad is None for p in teacher.network.parameters())


def test_a_consistent_student_has_no_loss() -> None:
    """On the fine grid's last step the teacher's own answer is the path's end, up to sigma_min."""
    teacher = teacher_of("sample")
    spec = spec_of(teacher, 4, 1, 1, eta=0.0)
    one = consistency(teacher, spec, nfe=(1,))
    Y = batch_of(teacher, spec, 2).Y
    assert torch.equal(one.target(Y[:, 1], torch.ones(2).long(), None), Y[:, 1])
    fine = spec_of(teacher, 4, 4, 1, eta=0.0)
    method, Y = consistency(teacher, fine, nfe=(4,), sigma_min=1e-6), batch_of(teacher, fine, 2).Y
    with torch.no_grad():
        answer = method.answer("student", Y[:, 3], torch.full((2,), 3), None)
    torch.testing.assert_close(answer, Y[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_the_target_follows_the_student(decay: float) -> None:
    """(22), and no optimizer moves it; a mean of the student's states, by hand."""
    teacher = teacher_of("v_prediction")
    spec = spec_of(teacher, eta=0.0)
    method, batch = consistency(teacher, spec, target_decay=decay), batch_of(teacher, spec, 4)
    expected = weights(method.networks["target"])
    state = TrainState(method, LoopConfig(steps=3, learning_rate=1e-2))
    for _ in train(method, lambda *_: batch, state):
        student = method.networks["student"].state_dict()
        for name, value in expected.items():
            value.copy_(decay * value + (1 - decay) * student[name])
    for name, value in method.networks["target"].state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    moved = weights(method.networks["student"])["conv_in.weight"]
    assert not torch.equal(moved, teacher.network.state_dict()["conv_in.weight"])
    assert state.optimizers["target"].state_dict()["state"] == {}


def test_a_resumed_training_has_the_same_target() -> None:
    teacher = teacher_of("v_prediction")
    spec = spec_of(teacher, eta=0.0)
    batch, loop = batch_of(teacher, spec, 4), LoopConfig(steps=4, learning_rate=1e-2)

    def batches(*key: int) -> PathBatch:
        return batch

    whole, first, second = (consistency(teacher, spec) for _ in range(3))
    list(train(whole, batches, TrainState(whole, loop)))
    state, steps = TrainState(first, loop), iter(())
    steps = train(first, batches, state)
    next(steps), next(steps)
    saved = copy.deepcopy(state.state_dict())
    resumed = TrainState(second, loop)
    resumed.load_state_dict(saved)
    list(train(second, batches, resumed))
    for role in ("student", "target"):
        found = second.networks[role].state_dict()
        assert all(
            torch.equal(found[name], value)
            for name, value in whole.networks[role].state_dict().items()
        )


def test_distances() -> None:
    u = torch.randn(5, 2, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    v = torch.zeros(5, 2, 6)
    assert float(distance(u, v, "l2").detach()) == pytest.approx(float(u.detach().square().mean()))
    assert float(distance(u, v, "l1").detach()) == pytest.approx(float(u.detach().abs().mean()))
    c = 0.00054 * math.sqrt(12)
    rows = [math.sqrt(float(row.square().sum()) + c**2) - c for row in u.detach()]
    expected = sum(rows) / 5 / math.sqrt(12)
    assert float(distance(u, v, "huber").detach()) == pytest.approx(expected, rel=1e-5)
    torch.autograd.backward(distance(u * 0, v, "huber"))
    assert torch.isfinite(u.grad).all()  # finite where the answers agree


@pytest.mark.parametrize("kind", ["l2", "l1", "huber"])
def test_training_comes_nearer_to_the_paths_ends(kind: str) -> None:
    """One call from the start noise; neighbours alone were compared."""
    teacher = teacher_of("v_prediction")
    spec = spec_of(teacher, eta=0.0)
    method = consistency(teacher, spec, distance=kind, target_decay=0.5)
    batch = batch_of(teacher, spec, 32)
    before = method.validation_figures(4, batch)["end_rmse"]
    with torch.no_grad():
        answer = method.pipeline.denoise(method.pipeline.levels(4)[0], batch.Y[:, 0])
    by_hand = float((answer - batch.Y[:, -1]).square().mean().sqrt())
    assert before == pytest.approx(by_hand, rel=1e-5)
    assert method.validation_figures(2, batch) == {}
    state = TrainState(method, LoopConfig(steps=60, learning_rate=3e-3, ema=0.0))
    list(train(method, lambda step, *_: batch._replace(step=step), state))
    assert method.validation_figures(4, batch)["end_rmse"] < 0.8 * before


def test_recomputed_activations_give_the_same_gradients() -> None:
    teacher = teacher_of("conditional")
    spec = spec_of(teacher, eta=0.0)
    plain, saving = (consistency(teacher, spec, checkpointing=c) for c in (False, True))
    batch = batch_of(teacher, spec, 4)
    for method in (plain, saving):
        torch.autograd.backward(loss_of(method, batch))
    pairs = zip(plain.pipeline.unet.parameters(), saving.pipeline.unet.parameters(), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_lora_trains_and_averages_the_adapters() -> None:
    teacher = teacher_of("v_prediction")
    spec = spec_of(teacher, eta=0.0)
    method, batch = (
        consistency(teacher, spec, trainable="lora", lora_rank=2),
        batch_of(teacher, spec, 4),
    )
    before = weights(method.networks["target"])
    list(
        train(method, lambda *_: batch, TrainState(method, LoopConfig(steps=2, learning_rate=1e-2)))
    )
    after = weights(method.networks["target"])
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved and all("lora" in name or name.startswith("conv_in") for name in moved)


def test_what_does_not_fit_is_one_line() -> None:
    teacher = teacher_of("flow")
    with pytest.raises(InputError, match="trajectories.eta = 1.0: method.kind = consistency"):
        consistency(teacher, spec_of(teacher))
    with pytest.raises(InputError, match=r"method\.sigma_min = 2\.0: expected below sigma / alpha"):
        consistency(teacher, sigma_min=2.0)
