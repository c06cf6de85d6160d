"""The loop as stages run it: kill and resume, history, checkpoints kept, advice after a NaN."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from models.common.errors import InputError
from models.training.loop import LoopConfig, TrainState
from tasks.training.checkpoints import latest_checkpoint
from tasks.training.trainer import Training
from tasks.utils.device import pick_device
from tasks.utils.scratch import scratch_for
from tests.models.training.test_loop import Regression, batches, equal


def training(
    scratch: Path, noisy: bool = True, bad_step: int = -1, steps: int = 23, **options: object
) -> Training:
    method = Regression(("student", "critic"), noisy=noisy, bad_step=bad_step)
    state = TrainState(method, LoopConfig(steps=steps, warmup=2, ema=0.9))
    kept: dict[str, object] = {"checkpoint_every": 5, "keep": 2} | options
    return Training(method, state, batches, scratch, torch.device("cpu"), **kept)  # type: ignore[arg-type]


def test_killed_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    """Weights, optimizers, EMA, history and the caller's own state; only the steps since then
    again.
    """
    validated: list[int] = []

    def validate_into(run: Training, dies_at: int = -1) -> None:
        def validate(step: int, state: TrainState) -> dict[str, float]:
            if step == dies_at:
                raise KeyboardInterrupt
            validated.append(step)
            bias = float(state.ema_weights["student"]["0.bias"][0])
            run.extra["best"] = min(run.extra.get("best", math.inf), bias)
            return {"score": float(step)}

        run.validate, run.validate_every = validate, 4

    whole = training(tmp_path / "whole")
    validate_into(whole)
    whole.run("whole")
    assert validated == [0, 4, 8, 12, 16, 20, 23]

    validated.clear()
    killed = training(tmp_path / "cut")
    validate_into(killed, dies_at=16)
    with pytest.raises(KeyboardInterrupt):
        killed.run("cut")
    found = latest_checkpoint(tmp_path / "cut")
    assert found is not None and found.step == 15

    torch.manual_seed(1234)
    again = training(tmp_path / "cut")
    validate_into(again)
    again.run("cut")
    assert validated == [0, 4, 8, 12, 16, 20, 23]
    assert equal(again.state.state_dict(), whole.state.state_dict())
    assert again.history == whole.history and again.extra == whole.extra
    assert [row["step"] for row in whole.history] == [0, 4, 5, 8, 10, 12, 15, 16, 20, 23]
    assert whole.history[1]["score"] == 4.0 and "score" not in whole.history[2]
    assert {"learning_rate", "student/loss", "student/grad_norm", "critic/loss"} <= set(
        whole.history[1]
    )


def test_checkpoints_are_few_and_the_last_step_is_one(tmp_path: Path) -> None:
    run = training(tmp_path)
    run.run("few")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020", "step-00000023"]
    finished = training(tmp_path)
    finished.run("few")  # nothing left to do
    assert finished.state.step == 23 and equal(finished.state.state_dict(), run.state.state_dict())


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    whole = training(tmp_path)
    whole.run("whole")
    file = tmp_path / "step-00000023" / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    again = training(tmp_path)
    assert again.resume() == 20
    again.run("again")
    assert equal(again.state.state_dict(), whole.state.state_dict())


def test_nan_is_one_line_with_step_and_checkpoint(tmp_path: Path) -> None:
    run = training(tmp_path, bad_step=3 * 7)  # three losses per step: the first of step 8
    with pytest.raises(
        InputError, match=r"step 8: loss or gradient of critic is not finite"
    ) as caught:
        run.run("bad")
    assert "\n" not in str(caught.value) and str(tmp_path / "step-00000005") in str(caught.value)
    early = training(tmp_path / "new", bad_step=0)
    with pytest.raises(InputError, match="step 1: .* there is no checkpoint yet"):
        early.run("bad")


def test_other_ranks_only_train(tmp_path: Path) -> None:
    run = training(tmp_path, rank=1, noisy=False)
    run.run("rank 1")
    assert run.state.step == 23 and run.history == [] and list(tmp_path.iterdir()) == []


def test_scratch_is_named_by_its_inputs(tmp_path: Path) -> None:
    first = scratch_for(tmp_path, "student", {"a": 1}, "key")
    assert first.parent == tmp_path / ".fewstep" / "scratch" / "student"
    assert first == scratch_for(tmp_path, "student", {"a": 1}, "key")
    others = {
        scratch_for(tmp_path, "student", {"a": 2}, "key"),
        scratch_for(tmp_path, "student", {"a": 1}),
    }
    assert len({first} | others) == 3


def test_device() -> None:
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
