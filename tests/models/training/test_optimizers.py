"""The optimizers by name: AdamW as it is, and that of 8 bits, where its package is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.common.errors import InputError
from models.training.loop import LoopConfig, TrainState, train
from models.training.optimizers import check_optimizer, make_optimizer
from tasks.training.checkpoints import flatten, latest_checkpoint, save_checkpoint, unflatten
from tests.models.training.test_loop import Regression, batches, equal


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    check_optimizer("adamw")
    line = r"student.optimizer = adamw8bit: the package torchao .* run `pip install torchao`"
    with pytest.raises(InputError, match=line):
        make_optimizer("adamw8bit", [{"params": [nn.Parameter(torch.zeros(2))]}], (0.9, 0.9), 0.0)


class Wide(Regression):
    """With weights that are large enough for moments of 8 bits, 4096 numbers or more."""

    def __init__(self) -> None:
        super().__init__()
        net = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 64), nn.Linear(64, 2))
        self.networks = {"student": net}


@pytest.fixture
def eight_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchao without its compilation, which is for speed."""
    pytest.importorskip("torchao")
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def fit(optimizer: str, state: TrainState | None = None, until: int = 40) -> TrainState:
    if state is None:
        torch.manual_seed(0)
        state = TrainState(Wide(), LoopConfig(40, 1e-2, warmup=4, optimizer=optimizer))
    method: Any = Wide()
    method.networks = state.networks
    for report in train(method, batches, state):
        if report.step == until:
            break
    return state


def test_moments_of_eight_bits_train_alike_and_resume_exactly(
    eight_bit: None, tmp_path: Path
) -> None:
    """The same path within the rounding of moments to 8 bits; the same numbers after a resume."""
    plain, whole = fit("adamw"), fit("adamw8bit")
    torch.manual_seed(0)
    begun = Wide().networks["student"].state_dict()
    for name, value in plain.networks["student"].state_dict().items():
        moved = float((value - begun[name]).norm())
        apart = float((whole.networks["student"].state_dict()[name] - value).norm())
        assert moved > 0 and apart < 0.2 * moved
    moments = whole.state_dict()["optimizers"]["student"]["state"][2]["exp_avg"]
    assert moments["codes"].dtype == torch.uint8 and moments["codes"].shape == (64, 64)

    half = fit("adamw8bit", until=20)
    save_checkpoint(tmp_path, 20, *flatten(half.state_dict()))
    found = latest_checkpoint(tmp_path)
    assert found is not None
    resumed = TrainState(Wide(), LoopConfig(40, 1e-2, warmup=4, optimizer="adamw8bit"))
    resumed.load_state_dict(unflatten(*found.load()))
    assert equal(fit("adamw8bit", resumed).state_dict(), whole.state_dict())
