"""Sharded networks: two workers train as one process does, and go on from each other's checkpoints.

Two workers add the same micro-batches' gradients in another order, so figures differ by the
rounding of float32 sums: 1e-7 of a gradient, which Adam hands on as it is, since it divides by the
gradient's size. In bfloat16 a wrong bit of a weight is 1/256 of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from models.common.errors import InputError
from models.methods.base import DistillationMethod
from models.methods.sigdeg.method import SigDEG
from models.training.sharding import Share
from tests.models.methods.made import sigdeg_config
from tests.models.training.shared_work import (
    HALF,
    WORKS,
    Terms,
    averages,
    resumed,
    state_of,
    trained,
    two_workers,
)

pytestmark = pytest.mark.timeout(900)  # all of them take minutes on a busy machine
QUICK = ["sigdeg, adapters"]
NAMES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow, id=name) for name in WORKS
]


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers make of the trainings that are asked for."""
    folder = tmp_path_factory.mktemp("shared")
    asked = {getattr(item, "callspec", None) and item.callspec.params.get("name")
             for item in request.session.items if item.path == request.path}  # fmt: skip
    two_workers(folder, [name for name in WORKS if name in asked or name in QUICK])
    return folder


def told(made: Path, name: str, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((made / name / f"{rank}.json").read_text())
    return found


def same(found: Terms, expected: Terms, rel: float) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=rel, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_two_workers_have_the_losses_of_one(made: Path, name: str) -> None:
    """Losses, their parts and the gradient's norm of every step and role; then the averages."""
    work = WORKS[name]()
    state = state_of(work)
    before = {k: v.clone() for k, v in averages(state).items()}
    expected = trained(work, state)
    found = told(made, name)
    rel = 2e-2 if work.precision == "bfloat16" else 1e-4
    same(found["terms"], expected, rel)
    assert found["terms"] == told(made, name, 1)["terms"]
    assert any("grad_norm" in key for key in expected[0])
    kept = load_file(made / name / "averages.safetensors")
    assert kept.keys() == before.keys()
    moved, apart = 0.0, 0.0
    for key, value in averages(state).items():
        moved += float((value - before[key]).square().sum())
        apart += float((value - kept[key]).square().sum())
    # Adam sends weights whose gradient is rounding alone anywhere, such as attention's key bias
    assert moved > 0 and apart < (0.5 if rel > 1e-3 else 0.05) ** 2 * moved


@pytest.mark.parametrize("name", NAMES)
def test_two_workers_go_on_exactly(made: Path, name: str) -> None:
    for rank in range(2):
        found = told(made, name, rank)
        assert found["later"] == found["terms"][HALF:]


@pytest.mark.parametrize("name", NAMES)
def test_one_process_goes_on_where_two_workers_stopped(made: Path, name: str) -> None:
    work = WORKS[name]()
    state = resumed(work, made / name, Share())
    assert state.step == HALF
    rel = 2e-2 if work.precision == "bfloat16" else 1e-4
    same(trained(work, state), told(made, name)["terms"][HALF:], rel)


def test_a_worker_holds_half_and_shares_what_is_frozen(made: Path) -> None:
    """All parts together are the whole; adapters' base is the teacher's own part."""
    method = WORKS["sigdeg, adapters"]().method
    student, teacher = method.networks["student"], method.teacher.network
    records = [told(made, "sigdeg, adapters", rank) for rank in range(2)]
    whole = sum(p.numel() for p in student.parameters())
    held = [record["held"] for record in records]
    assert sum(held) == whole and max(held) < 0.6 * whole
    shared = {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}
    assert records[0]["common"] == len(shared) > 50


@pytest.mark.parametrize("wrong", [
    lambda: SigDEG.check_sharding(sigdeg_config(nfe=(4,), window_start=2, window_until=0.5)),
    lambda: Undeclared.check_sharding(None),
])  # fmt: skip
def test_what_workers_cannot_do_alike_is_refused(wrong: Callable[[], None]) -> None:
    with pytest.raises(InputError, match=r"^student.sharding = full: .*(set|expected|override)"):
        wrong()


class Undeclared(DistillationMethod):
    name = "mine"
