"""The scripts behind the tables of scale-wise Sig-DEG: their distances, and which steps are small."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from models.methods.sigdeg.build import plans_of
from scripts import scale_wise_field
from scripts.scale_wise_digits import config_of
from scripts.scale_wise_field import kl, mirrors, wasserstein
from tests.models.tinypaths import spec_of
from tests.tiny import tiny_teacher


def test_distances_of_gaussians() -> None:
    """Divergence as torch has it; Wasserstein of commuting covariances is that of their roots."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    a, b = root @ root.T + torch.eye(6), torch.diag(torch.arange(1.0, 7.0).double())
    zero = torch.zeros(6, dtype=torch.float64)
    expected = kl_divergence(MultivariateNormal(zero, a), MultivariateNormal(zero, b))
    assert kl(a, b) == pytest.approx(float(expected), rel=1e-9)
    values, vectors = torch.linalg.eigh(a)
    moved = (vectors * (values.sqrt() + 0.5) ** 2) @ vectors.T
    assert wasserstein(a, moved) == pytest.approx(0.5 * 6**0.5, rel=1e-6)


def test_mirrors() -> None:
    """Eight different ones, which keep every distance between pixels on the torus."""
    group = mirrors(4).numpy()
    assert len(np.unique(group, axis=0)) == 8 and (np.sort(group, 1) == np.arange(16)).all()
    y, x = np.divmod(np.arange(16), 4)

    def distance(p: np.ndarray) -> np.ndarray:
        steps = [np.abs(v[p][:, None] - v[p]) for v in (y, x)]
        return np.asarray(sum(np.minimum(s, 4 - s) ** 2 for s in steps))

    assert all((distance(p) == distance(np.arange(16))).all() for p in group)


@pytest.mark.parametrize("small", [0, 1, 3])
def test_as_many_steps_are_small_as_asked(small: int) -> None:
    teacher = tiny_teacher(size=16)
    spec = spec_of(teacher, 12, 4)
    plan = plans_of(teacher, spec, config_of(spec, 4, small, 16))[4]
    assert [step.reduction for step in plan] == [2] * small + [1] * (4 - small)


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["scale_wise_field", "--size", "4", "--steps", "3"])
    scale_wise_field.main()
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [int(row[1]) for row in rows] == [0, 1, 2] and {len(row) for row in rows} == {7}
    distances = [float(row[4]) for row in rows]
    assert distances[1] == pytest.approx(distances[0], rel=0.1) and distances[2] > distances[1] > 0
