"""The windows of a path that Sig-DEG is trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.methods.sigdeg.pipeline import next_state, path_average, query_state
from tests.models.methods.sigdeg.making import loss_of, method_of, paths_of
from tests.tiny import perturbed


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
