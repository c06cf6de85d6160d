"""Sig-DEG with the energy score: the extra input e, two draws, and that both can be turned off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from models.common.errors import InputError
from models.methods.base import PathBatch
from models.methods.export import open_student
from models.methods.losses import path_loss
from models.methods.scoring import energy_score
from models.methods.sigdeg.method import SigDEG
from models.methods.sigdeg.pipeline import SigDEGPipeline, next_state
from models.training.loop import LoopConfig, TrainState, train
from tests.models.methods.made import sigdeg, sigdeg_config
from tests.models.tinypaths import batch_of, spec_of, teacher_of
from tests.tiny import perturbed

SCORE = {"score": 1.0, "path": 0.0, "score_patches": (0, 4)}


def method_of(kind: str = "v_prediction", **choices: Any) -> SigDEG:
    teacher = teacher_of(kind)
    choices = {"nfe": (4, 2), "conditioning_limit": None, "window_start": 4} | choices
    return sigdeg(teacher, spec_of(teacher), **choices)


def paths_of(method: SigDEG, n: int = 4, step: int = 0) -> PathBatch:
    return batch_of(method.teacher, spec_of(method.teacher), n, step)


def loss_of(method: SigDEG, batch: PathBatch, seed: int = 4) -> tuple[Tensor, dict[str, Tensor]]:
    return method.loss("student", batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["v_prediction", "flow", "dit"])
def test_the_input_changes_nothing_before_training(kind: str) -> None:
    """Untrained, the student with e takes the steps of the student without, on the same path."""
    with_e, without = method_of(kind, **SCORE), method_of(kind)
    batch = paths_of(without)
    xi = without.step_schedules[4].features(batch.xi)
    e = torch.randn(4, 4, 1, *xi.shape[3:], generator=torch.Generator().manual_seed(0))
    found, expected = (
        method.pipeline.rollout(batch.Y[:, 0], own, batch.condition, 4)[1]
        for method, own in ((with_e, torch.cat([xi, e], 2)), (without, xi))
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    channels = [method.pipeline.unet.config.in_channels for method in (with_e, without)]
    assert channels[0] == channels[1] + with_e.teacher.shape[0]


@pytest.mark.parametrize("kind", ["v_prediction", "dit"])
def test_width_hides_the_signature_from_the_network_alone(kind: str) -> None:
    """The network still sees e, and the signature still moves the state."""
    method = method_of(kind, **SCORE, inputs="width")
    perturbed(method.pipeline.unet)
    batch = paths_of(method)
    Y, step = batch.Y[:, 0], method.step_schedules[4].steps[0]
    xi = torch.randn(4, len(step.n), *Y.shape[1:], generator=torch.Generator().manual_seed(0))
    signature, e = xi.clone(), xi.clone()
    signature[:, :-1] += 1.0
    e[:, -1] += 1.0
    D, same, other = (
        method.pipeline.denoise(step, Y, z, [], batch.condition) for z in (xi, signature, e)
    )
    assert torch.equal(D, same) and not torch.allclose(D, other)
    assert not torch.allclose(next_state(step, Y, D, xi), next_state(step, Y, D, signature))


def test_without_the_score_there_is_no_e() -> None:
    """No channel, no entry in the plan, and no number drawn but the window's place."""
    method = method_of()
    assert {len(step.n) for s in method.step_schedules.values() for step in s.steps} == {3}
    assert method.pipeline.unet.config.in_channels == 1 + 3 + 1
    generator = torch.Generator().manual_seed(4)
    _, terms = method.loss("student", paths_of(method), generator)
    assert set(terms) == {"path_4"}
    expected = torch.Generator().manual_seed(4)
    torch.randint(1, (1,), generator=expected)
    assert torch.equal(generator.get_state(), expected.get_state())


@pytest.mark.parametrize("weighting", ["marginal", "uniform", "final"])
@pytest.mark.parametrize("path", [0.0, 0.5])
def test_loss_is_the_score_of_two_rollouts(path: float, weighting: str) -> None:
    """Against the pipeline's own rollouts along the same path, each with its own e."""
    method = method_of(**{**SCORE, "score": 2.0, "path": path, "weighting": weighting})
    perturbed(method.pipeline.unet)
    batch = paths_of(method)
    total, terms = loss_of(method, batch)
    generator = torch.Generator().manual_seed(4)
    torch.randint(1, (1,), generator=generator)
    schedule = method.step_schedules[4]
    xi = schedule.features(batch.xi)
    states = []
    for _ in range(2):
        e = torch.randn(4, 4, 1, *xi.shape[3:], generator=generator)
        own = torch.cat([xi, e], 2)
        states.append(method.pipeline.rollout(batch.Y[:, 0], own, None, 4)[1][:, 1:])
    target, weights = batch.Y[:, 1:], schedule.weights
    score = energy_score(*states, target, weights, 1.0, (0, 4))
    torch.testing.assert_close(terms["score_4"], score, rtol=1e-4, atol=1e-6)
    expected = 2.0 * score + path * path_loss(states[0], target, weights)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)
    assert (states[0] - states[1])[:, -1].abs().max() > 1e-3
    assert 0 < float(terms["spread_4"]) < 1


@pytest.mark.parametrize("steps", [4, 2, 1])
def test_inner_keeps_e_from_the_last_step_alone(steps: int) -> None:
    """Which steps another e changes; a student of one step keeps its e."""
    method = method_of(**SCORE, nfe=(steps,), score_noise="inner")
    perturbed(method.pipeline.unet)
    plan = method.pipeline.plan(steps)
    assert [step.kept[-1] for step in plan] == [1.0] * (steps - 1) + [float(steps == 1)]
    Y, xi = torch.randn(2, 1, 8, 8), torch.randn(2, 4, 1, 8, 8)
    other = torch.cat([xi[:, :-1], torch.randn(2, 1, 1, 8, 8)], 1)
    for i, step in enumerate(plan):
        a, b = (method.pipeline.denoise(step, Y, own, []) for own in (xi, other))
        assert torch.equal(a, b) == (i == steps - 1 > 0)


def test_teacher_forcing_and_checkpointing() -> None:
    """Windows inside the path start at teacher states; checkpointed gradients are the same."""
    plain = method_of(**SCORE, window_start=1, window_until=1.0)
    assert plain.window(0, 4) == 1 and plain.window(10, 4) == 4
    batch = paths_of(plain)
    seen = {float(loss_of(plain, batch, seed)[0].detach()) for seed in range(6)}
    assert len(seen) > 1
    teacher = teacher_of("v_prediction")
    saving = sigdeg(
        teacher,
        spec_of(teacher),
        gradient_checkpointing=True,
        nfe=(4, 2),
        conditioning_limit=None,
        window_start=4,
        **SCORE,
    )
    whole = method_of(**SCORE)
    for method in (saving, whole):
        loss_of(method, batch)[0].backward()
    for a, b in zip(
        saving.pipeline.unet.parameters(), whole.pipeline.unet.parameters(), strict=True
    ):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_sampling_draws_e_from_the_generator(tmp_path: Path) -> None:
    """Equal seeds give equal images, also from the saved folder; given the whole path, e is what
    is left to chance.
    """
    method = method_of(**SCORE)
    perturbed(method.pipeline.unet)
    noise = torch.randn(3, *method.teacher.shape, generator=torch.Generator().manual_seed(0))

    def images(pipeline: Any, seed: int, xi: Tensor | None = None) -> Tensor:
        found: Tensor = pipeline.rollout(noise, xi, None, 4, torch.Generator().manual_seed(seed))[0]
        return found

    assert torch.equal(images(method.pipeline, 1), images(method.pipeline, 1))
    xi = torch.randn(3, 4, 3, *noise.shape[1:], generator=torch.Generator().manual_seed(7))
    spread = (images(method.pipeline, 1, xi) - images(method.pipeline, 2, xi)).abs().max()
    assert spread > 1e-3
    method.pipeline.save_pretrained(tmp_path / "student")
    loaded = open_student(tmp_path / "student")
    assert isinstance(loaded, SigDEGPipeline)
    torch.testing.assert_close(images(loaded, 1), images(method.pipeline, 1))


def test_training_lowers_the_score_and_opens_the_spread() -> None:
    """A few steps on cached paths; the draws coincide at first."""
    method = method_of(**SCORE, nfe=(2,))
    batch = paths_of(method, 6)
    before = loss_of(method, batch)[1]
    assert float(before["spread_2"]) == 0.0
    state = TrainState(method, LoopConfig(steps=16, learning_rate=4e-3, warmup=2, ema=0.0))
    for _ in train(method, lambda step, micro, update: batch._replace(step=step), state):
        pass
    after = loss_of(method, batch)[1]
    assert float(after["score_2"].detach()) < 0.9 * float(before["score_2"].detach())
    assert float(after["spread_2"]) > 0.05


def test_validation_is_the_same_every_time() -> None:
    method = method_of(**SCORE)
    perturbed(method.pipeline.unet)
    paths = paths_of(method)
    assert method.validation_figures(4, paths) == method.validation_figures(4, paths)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"score_patches: 3 does not tile states of \(8, 8\)"):
        method_of(**{**SCORE, "score_patches": (0, 3)})
    for wrong in (0.0, 2.0, -1.0):
        with pytest.raises(ValidationError, match="score_beta"):
            sigdeg_config(score_beta=wrong)
    for sizes in ((), (0, 0), (-1,)):
        with pytest.raises(ValidationError, match="score_patches"):
            sigdeg_config(score_patches=sizes)
    with pytest.raises(ValidationError, match="the energy score needs an input of its own"):
        sigdeg_config(score=1.0, inputs="none")
