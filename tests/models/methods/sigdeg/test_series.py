"""States (C, L): every formula gives what it gives for images of width one."""

from __future__ import annotations

import torch
from torch import Tensor

from models.methods.losses import path_loss
from models.methods.scoring import energy_score
from models.methods.sigdeg.build import build_pipeline, make_step_schedule
from models.methods.sigdeg.pipeline import network_input, next_state, query_state, rollout
from models.sampling.signature import joined
from models.teachers.architectures import build_network, build_scheduler
from models.teachers.base import Denoiser
from models.teachers.loading import build_denoiser, set_scaling
from tests.models.methods.made import sigdeg_config
from tests.models.tinypaths import spec_of
from tests.tiny import perturbed

# As many channels as there are features and points of patches: a mixed-up axis would not show
# by its size.
CHANNELS, LENGTH, COUNT = 3, 16, 4


def teacher() -> Denoiser:
    torch.manual_seed(0)
    network = perturbed(build_network((CHANNELS, LENGTH), (8, 16), 1))
    made = build_denoiser(network, build_scheduler("v_prediction", "linear"))
    set_scaling(made, {"mean": [5.0, -3.0, 0.0], "std": [2.0, 0.1, 40.0]}, "tiny")
    return made


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_formulas() -> None:
    """(6), (7), (3), the input's channels, Chen's joins, path error and energy score."""
    spec = spec_of(teacher())
    schedule = make_step_schedule(spec, 2, sigdeg_config(nfe=(4, 2)), data_std=1.0)
    step, n = schedule.steps[1], 5
    Y, D, mean = normal(n, CHANNELS, LENGTH), normal(n, CHANNELS, LENGTH, seed=1), torch.zeros(1)
    xi = normal(n, 4, 3, CHANNELS, LENGTH, seed=2)

    def wide(x: Tensor) -> Tensor:
        return x[..., None]

    whole = joined(xi, schedule.joins)
    torch.testing.assert_close(wide(whole), joined(wide(xi), schedule.joins))
    z = whole[:, 1]
    pairs = (
        (query_state(step, Y, z, [D], mean), query_state(step, wide(Y), wide(z), [wide(D)], mean)),
        (next_state(step, Y, D, z), next_state(step, wide(Y), wide(D), wide(z))),
        (
            network_input(step, Y, z, [D], mean, True),
            network_input(step, wide(Y), wide(z), [wide(D)], mean, True),
        ),
    )
    for found, expected in pairs:
        torch.testing.assert_close(wide(found), expected)
    p, q, y = (normal(n, 2, CHANNELS, LENGTH, seed=s) for s in (3, 4, 5))
    weights = torch.tensor([0.3, 2.0])
    for power in (2.0, 1.0):
        found = path_loss(p, y, weights, power)
        torch.testing.assert_close(found, path_loss(wide(p), wide(y), weights, power))
    found = energy_score(p, q, y, weights, patches=(0,))
    torch.testing.assert_close(
        found, energy_score(wide(p), wide(q), wide(y), weights, patches=(0,))
    )
    by_hand = torch.stack(
        [energy_score(*(v[..., k : k + 4] for v in (p, q, y)), weights) for k in range(0, 16, 4)]
    )
    torch.testing.assert_close(energy_score(p, q, y, weights, patches=(4,)), by_hand.mean())


def test_the_untrained_student_is_the_integrator_around_the_teacher() -> None:
    """Its network, with extra channels, denoises as the teacher; samples are in the data's units;
    a trained draw would differ by e, an untrained one does not.
    """
    made, config = (
        teacher(),
        sigdeg_config(nfe=(4, 2), loss={"path": 0.0, "mmd": 0.0, "score": 1.0}),
    )
    pipe = build_pipeline(made, spec_of(made), config)
    pipe.unet.eval()
    noise, xi = normal(6, CHANNELS, LENGTH), normal(6, 4, 4, CHANNELS, LENGTH, seed=1)
    x0, states = pipe.rollout(noise, xi, nfe=4)
    expected = rollout(
        lambda step, X, z, history: made.denoise(X, step.t),
        pipe.plan(4),
        noise,
        xi,
        pipe._mean(noise),
    )
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pipe.decode(x0), made.decode(x0))
    assert pipe.decode(x0)[:, 2].std() > 4 * x0[:, 2].std()
