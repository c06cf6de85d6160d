"""SFD: nothing to learn on the fine grid, its loss by hand, the gradient's reach, resume and a
training that improves.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.common.errors import InputError
from models.methods.base import MethodContext, PathBatch
from models.methods.sfd import SFD
from models.methods.sfd_config import SFDConfig
from models.sampling.trajectories import PathSpec
from models.teachers.base import Denoiser
from models.training.loop import LoopConfig, TrainState, train
from tests.models.tinypaths import KINDS, batch_of, series_teacher, spec_of, teacher_of
from tests.tiny import perturbed


def sfd(teacher: Denoiser, spec: PathSpec, checkpointing: bool = False, **choices: Any) -> SFD:
    config = SFDConfig(**{"nfe": (4, 2)} | choices)
    return SFD(MethodContext(teacher, config, spec, gradient_checkpointing=checkpointing))


def loss_of(method: SFD, batch: PathBatch) -> Tensor:
    return method.loss("student", batch, torch.Generator().manual_seed(0))[0]


@pytest.mark.parametrize("kind", [*KINDS, "series"])
@pytest.mark.parametrize("nfe", [(6,), (6, 3)])
def test_on_the_fine_grid_there_is_nothing_to_learn(kind: str, nfe: tuple[int, ...]) -> None:
    """With a network call per fine step the untrained student is the teacher's own path."""
    teacher = series_teacher() if kind == "series" else teacher_of(kind)
    spec = spec_of(teacher, 6, 6, 1, eta=0.0)
    method, batch = sfd(teacher, spec, nfe=nfe), batch_of(teacher, spec, 3)
    scale = float(batch.Y.abs().max())
    assert float(loss_of(method, batch).detach()) < 1e-5 * scale
    assert method.validation_figures(6, batch)["path_rmse_6"] < 1e-5 * scale
    found = method.sample(batch.Y[:, 0], batch.condition, nfe=6)
    torch.testing.assert_close(found, batch.Y[:, -1], rtol=1e-4, atol=1e-5 * scale)
    perturbed(method.pipeline.unet)
    assert float(loss_of(method, batch).detach()) > 1e-3


@pytest.mark.parametrize("power", [1, 2])
def test_loss_is_the_error_along_the_students_own_rollout(power: int) -> None:
    """(19) from the pipeline's answers: every state in coordinates x / alpha; turns."""
    teacher = teacher_of("v_prediction")
    spec = spec_of(teacher, eta=0.0)
    method = sfd(teacher, spec, power=power)
    perturbed(method.pipeline.unet)
    levels = spec.chain.levels
    for step, nfe in ((0, 4), (1, 2), (2, 4)):
        batch, grid = batch_of(teacher, spec, 3, step), spec.grid[:: 4 // nfe]
        answers, errors = method.pipeline.rollout(batch.Y[:, 0], nfe=nfe)[1], []
        x = batch.Y[:, 0]
        for i, x0 in enumerate(answers):
            a, s = levels.alpha[grid], levels.sigma[grid]
            x = a[i + 1] * x0 + s[i + 1] * (x - a[i] * x0) / s[i]
            target = batch.Y[:, (i + 1) * 4 // nfe]
            errors.append(float(((x - target) / a[i + 1]).abs().pow(power).mean()))
        found, terms = method.loss("student", batch, torch.Generator())
        assert float(found.detach()) == pytest.approx(sum(errors) / nfe, rel=1e-4)
        assert list(terms) == [f"path_{nfe}"]


def test_no_gradient_passes_from_one_step_to_another() -> None:
    """The gradient is the sum of those of single steps from fixed states; recomputing activations
    changes nothing.
    """
    teacher = teacher_of("v_prediction")
    spec = spec_of(teacher, eta=0.0)
    method, batch = sfd(teacher, spec, nfe=(2,)), batch_of(teacher, spec, 3)
    network, pipeline = method.pipeline.unet, method.pipeline

    def gradients(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, list(network.parameters())))

    with torch.no_grad():
        start = method._states(batch.Y[:, 0], 2, None)[0]
    (first, last), middle = pipeline.levels(2), batch.Y[:, 2]
    kept = last.sigma / first.sigma
    made = kept * batch.Y[:, 0] + (last.alpha - first.alpha * kept) * pipeline.denoise(
        first, batch.Y[:, 0]
    )
    losses = ((made - middle) / last.alpha).abs().mean() / 2
    losses = losses + (pipeline.denoise(last, start) - batch.Y[:, -1]).abs().mean() / 2
    expected = gradients(losses)
    again = sfd(teacher, spec, checkpointing=True, nfe=(2,))
    again.pipeline.unet.load_state_dict(network.state_dict())
    for grad, wanted in zip(gradients(loss_of(method, batch)), expected, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-6)
    torch.autograd.backward(loss_of(again, batch))
    for parameter, wanted in zip(again.pipeline.unet.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6)


def test_one_number_of_steps_leaves_the_networks_shape() -> None:
    teacher = teacher_of("v_prediction")
    spec = spec_of(teacher, eta=0.0)
    one, several = sfd(teacher, spec, nfe=(2,)), sfd(teacher, spec)
    assert one.pipeline.unet.config.in_channels == 1 and not one.pipeline.config.steps_input
    assert several.pipeline.unet.config.in_channels == 2 and several.pipeline.config.steps_input
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(one.sample(noise, nfe=2), several.sample(noise, nfe=2))


@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_training_comes_nearer_to_the_teachers_path(trainable: str) -> None:
    teacher = teacher_of("v_prediction")
    spec = spec_of(teacher, eta=0.0)
    method, batch = sfd(teacher, spec, trainable=trainable, lora_rank=4), batch_of(teacher, spec, 8)
    before = method.validation_figures(2, batch)["path_rmse_2"]
    state = TrainState(method, LoopConfig(steps=40, learning_rate=3e-3, ema=0.0))
    reports = list(train(method, lambda step, *_: batch._replace(step=step), state))
    assert set(reports[0].terms) == {"student/loss", "student/path_4", "student/grad_norm"}
    assert method.validation_figures(2, batch)["path_rmse_2"] < 0.85 * before


def test_paths_with_noise_are_refused() -> None:
    teacher = teacher_of("flow")
    message = "trajectories.eta = 1.0: method.kind = sfd follows the teacher's deterministic paths"
    with pytest.raises(InputError, match=message):
        sfd(teacher, spec_of(teacher))
    with pytest.raises(InputError, match=r"method\.nfe 5: expected 1 to 4"):
        sfd(teacher, spec_of(teacher, eta=0.0), nfe=(5,))
