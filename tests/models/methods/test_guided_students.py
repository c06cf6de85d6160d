"""Students that take the weight of guidance: they learn what their teacher does at each weight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.methods.base import ImageBatch, MethodContext, PathBatch
from models.methods.consistency import Consistency
from models.methods.consistency_config import ConsistencyConfig
from models.methods.sfd import SFD
from models.methods.sfd_config import SFDConfig
from models.methods.sigdeg.method import SigDEG
from models.methods.swd.method import SwD
from models.methods.swd.schedule import make_schedule
from models.sampling.chain import Chain
from models.sampling.trajectories import (
    PathSpec,
    kept_features,
    path_condition,
    path_features,
    path_weights,
    teacher_paths,
)
from models.teachers.conditioning import Condition
from models.teachers.guidance import GuidanceRange, with_weights
from tests.models.methods.made import sigdeg_config, swd_config
from tests.models.teachers.texts import prompt_teacher
from tests.models.tinypaths import spec_of

RANGE = GuidanceRange(1.0, 16.0)
PATHS = 12


@pytest.fixture(scope="module")
def teacher() -> Any:
    """To read, not to change."""
    teacher: Any = prompt_teacher("sd", 16)[1]
    teacher.embed_guidance(RANGE)
    return teacher


def spec_with_range(teacher: Any) -> PathSpec:
    plain = spec_of(teacher, steps=8, intervals=2)
    return PathSpec(plain.chain, plain.grid, plain.parts, seed=3, lane=PATHS, guidance=RANGE)


def paths_of(teacher: Any, spec: PathSpec) -> PathBatch:
    cache = teacher_paths(teacher, spec, "train", 0, PATHS)
    shape, rows = teacher.shape, range(PATHS)
    xi = path_features(spec.seed, "train", rows, kept_features(spec.parts), shape)
    weights = path_weights(spec.guidance, spec.seed, "train", rows)
    condition = path_condition(teacher, torch.from_numpy(cache["labels"]), weights)
    return PathBatch(torch.from_numpy(cache["Y"]), xi, condition, 0)


def swapped(condition: Condition) -> Condition:
    """Every row with a weight of the range's other end."""
    return with_weights(condition, RANGE.low + RANGE.high - condition["guidance"])


@pytest.mark.parametrize("trainable", [pytest.param("full", marks=pytest.mark.slow), "lora"])
def test_sigdeg_learns_each_weight(teacher: Any, trainable: str) -> None:
    """Along the teacher's own paths it ends nearer to them with their weights than with others;
    before training weights say nothing.
    """
    spec = spec_with_range(teacher)
    batch = paths_of(teacher, spec)
    config = sigdeg_config(
        nfe=(2,), trainable=trainable, lora_rank=4, window_start=2, conditioning_limit=None
    )
    method = SigDEG(MethodContext(teacher, config, spec, guidance=RANGE))

    def error(condition: Condition | None) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return method.loss("student", batch._replace(condition=condition), generator)[0]

    assert batch.condition is not None
    other = swapped(batch.condition)
    with torch.no_grad():
        untrained = float(error(batch.condition))
        assert untrained == float(error(other))
    trained = [p for p in method.pipeline.unet.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=2e-2)
    for _ in range(25):
        optimizer.zero_grad()
        error(batch.condition).backward()
        optimizer.step()
    with torch.no_grad():
        own = float(error(batch.condition))
        assert own < 0.8 * untrained and float(error(other)) > 1.05 * own


@pytest.mark.parametrize(("kind", "settings"), [(SFD, SFDConfig), (Consistency, ConsistencyConfig)])
def test_other_methods_hand_the_weight_over(teacher: Any, kind: Any, settings: Any) -> None:
    spec = replace(spec_with_range(teacher), chain=Chain(teacher.schedule.levels(8), 0.0))
    batch = paths_of(teacher, spec)
    assert batch.condition is not None
    method = kind(MethodContext(teacher, settings(nfe=(2,)), spec, guidance=RANGE))
    for network in method.networks.values():
        torch.nn.init.normal_(network.time_embedding.cond_proj.weight)
    found = []
    for condition in (batch.condition, swapped(batch.condition)):
        generator = torch.Generator().manual_seed(0)
        found.append(method.loss("student", batch._replace(condition=condition), generator)[0])
    assert torch.isfinite(found[0]) and found[0] != found[1]
    found[0].backward()
    assert bool(method.networks["student"].time_embedding.cond_proj.weight.grad.any())


def test_the_network_that_damps_is_asked_without_guidance(teacher: Any) -> None:
    """It is the teacher's own, which takes no weight."""
    spec = spec_with_range(teacher)
    batch = paths_of(teacher, spec)
    config = sigdeg_config(nfe=(2,), window_start=2, conditioning_limit=1.0)
    method = SigDEG(MethodContext(teacher, config, spec, guidance=RANGE))
    step = method.pipeline.plan(2)[0]
    assert method.pipeline.frozen is not None and step.sigma > step.alpha
    z, x = batch.xi[:, 0], batch.Y[:, 0]
    found = method.pipeline.denoise(step, x, z, [], batch.condition)
    torch.testing.assert_close(found, teacher.denoise(x, step.t, batch.condition))


def test_swd_asks_all_networks_at_each_weight(teacher: Any) -> None:
    """Every loss depends on the weights: the teacher's score by its guidance, the fake network's by
    its input, batches by how near weights are.
    """
    full = teacher.shape[-1]
    schedule = [list(scale) for scale in make_schedule([(1.0, 4), (0.5, full)], full, 4)]
    config = swd_config(trainable="lora", lora_rank=2, compare="batch")
    found = {"schedule": schedule, "gate": []}
    method = SwD(MethodContext(teacher, config, guidance=RANGE, diagnostics=found))
    for name in ("student", "fake"):
        layer: Any = method.networks[name].time_embedding.cond_proj  # type: ignore[union-attr]
        assert layer.weight.requires_grad and not layer.weight.any()
    x0 = torch.randn(4, *teacher.shape, generator=torch.Generator().manual_seed(0))
    condition = teacher.default_condition(4)
    batch = ImageBatch(x0, condition, 1)
    losses = {}
    for name, given in (("own", condition), ("other", swapped(condition))):
        for role in ("fake", "discriminator", "student"):
            generator = torch.Generator().manual_seed(1)
            loss, terms = method.loss(role, batch._replace(condition=given), generator)
            losses[name, role] = terms
            if name == "own":
                torch.autograd.backward(loss)
    for role in ("student", "fake"):
        assert bool(method.networks[role].time_embedding.cond_proj.weight.grad.any())  # type: ignore
    own, other = losses["own", "student"], losses["other", "student"]
    assert own[f"dmd_{full}"] != other[f"dmd_{full}"]  # the teacher's alone: networks start at zero
    assert losses["own", "fake"] == losses["other", "fake"]
    torch.nn.init.normal_(method.networks["fake"].time_embedding.cond_proj.weight)  # type: ignore
    generator = torch.Generator().manual_seed(1)
    assert method.loss("fake", batch, generator)[1] != losses["own", "fake"]


def test_swd_compares_batches_by_how_near_their_weights_are(teacher: Any) -> None:
    """A student that does at each weight what the teacher does at the other end has the teacher's
    law over all weights: batches alone would not see it.
    """
    full = teacher.shape[-1]
    found = {"schedule": [[1.0, full]], "gate": []}
    config = swd_config(dmd=0.0, gan=0.0, compare="batch", bandwidths=(1.0,))
    ranged = SwD(MethodContext(teacher, config, guidance=RANGE, diagnostics=found))
    plain = SwD(MethodContext(teacher, config, guidance=3.0, diagnostics=found))
    n, generator = 48, torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    weights = RANGE.evenly(n)
    condition = with_weights(teacher.encode_condition(labels), weights)
    size = ((weights - RANGE.low) / (RANGE.high - RANGE.low)).view(-1, 1, 1, 1)

    def images(place: Tensor) -> Tensor:
        return 8 * place + 0.1 * torch.randn(n, *teacher.shape, generator=generator)

    y, right, wrong = images(size), images(size), images(1 - size)

    def mmd(method: SwD, x: Tensor) -> float:
        own = torch.Generator().manual_seed(1)
        with torch.no_grad():
            return float(method._mmd(0, x, y, condition, own))

    assert mmd(ranged, wrong) > 0.05 > 5 * abs(mmd(ranged, right))
    assert abs(mmd(plain, wrong)) < 0.2 * mmd(ranged, wrong)
