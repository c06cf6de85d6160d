"""The bench, on the shipped network's size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from torch.nn.modules.module import register_module_forward_pre_hook

from scripts import bench
from tasks.config.schema import Params
from tasks.config.trajectories import Trajectories
from tests.tiny import save_teacher, tiny_teacher


def settings(**changes: object) -> Params:
    return Params().model_copy(update={"trajectories": Trajectories.model_validate(changes)})


def test_the_machinery_costs_little_more_than_its_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``make bench`` wants 95 % and more; here, beside other tests, what no noisy neighbour
    explains.
    """
    monkeypatch.setattr(bench, "ROUNDS", 3)
    monkeypatch.setattr(bench, "SAMPLES", 16)
    torch.manual_seed(0)
    params = settings(steps=4, intervals=2, lane=16, batch_size=32)
    method = params.method.model_copy(update={"nfe": (2, 1)})
    student = params.student.model_copy(update={"batch_size": 8})
    bench.run(params.model_copy(update={"method": method, "student": student}), tmp_path)
    result = json.loads((tmp_path / "data" / "bench.json").read_text())
    titles = [pair["title"] for pair in result["pairs"]]
    assert titles == ["trajectories", "training step", "student sampling"]
    shown = capsys.readouterr().out
    for pair in result["pairs"]:
        assert pair["bare_rows_per_second"] > 0
        assert pair["ratio"] > 0.7, pair
        assert f"{pair['ratio']:.3f}" in shown


def test_both_sides_make_the_same_number_of_passes(tmp_path: Path) -> None:
    params = settings(steps=8, intervals=4, lane=4, batch_size=8)
    loss = params.method.loss.model_copy(update={"score": 1.0})
    method = params.method.model_copy(update={"nfe": (4, 2), "loss": loss})
    params = params.model_copy(update={"method": method})
    for pair in bench.pairs(params, tiny_teacher(), tmp_path):
        assert _rows(pair.bare) == _rows(pair.product) == pair.rows, pair.title


def _rows(work: Callable[[], object]) -> int:
    """Samples that pass through any UNet while ``work`` runs, a row each time."""
    seen = []
    hook = register_module_forward_pre_hook(
        lambda module, args: seen.append(len(args[0])) if isinstance(module, UNet2DModel) else None
    )
    try:
        work()
    finally:
        hook.remove()
    return sum(seen)


def test_bench_takes_the_projects_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_teacher(tmp_path, classes=3)
    monkeypatch.setattr(bench, "ROUNDS", 1)
    params = settings(steps=4, intervals=2, lane=4, batch_size=4, guidance=2.0)
    method = params.method.model_copy(update={"nfe": (2, 1)})
    bench.run(params.model_copy(update={"method": method}), tmp_path)
    result = json.loads((tmp_path / "data" / "bench.json").read_text())
    assert result["teacher"] == "data/teacher"
