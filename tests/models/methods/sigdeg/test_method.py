"""Sig-DEG's terms beside the path, and what its network sees."""

from __future__ import annotations

import pytest
import torch

from models.methods.base import PathBatch
from models.methods.sigdeg.method import SigDEG
from models.methods.sigdeg.pipeline import rollout
from models.teachers.conditioning import class_condition
from tests.models.methods.made import sigdeg
from tests.models.methods.sigdeg.making import GENERATOR_SEED, loss_of, method_of, paths_of
from tests.models.tinypaths import batch_of, spec_of
from tests.tiny import perturbed, tiny_teacher


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
