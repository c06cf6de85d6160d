from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from models.common.errors import InputError
from tasks.training.checkpoints import flatten, latest_checkpoint, save_checkpoint, unflatten


def same(left: Any, right: Any) -> bool:
    """Equality to the bit and to the type, NaN equal to NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        raw = left.dtype == right.dtype and left.shape == right.shape
        return raw and left.contiguous().numpy().tobytes() == right.contiguous().numpy().tobytes()
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right or (left != left and right != right)


NESTED = {
    "tensors": [
        torch.tensor(3.5, dtype=torch.float64),
        torch.arange(6, dtype=torch.int64).view(2, 3),
    ],
    "half": torch.tensor([1.0, float("nan"), -0.0], dtype=torch.float16),
    "flags": torch.tensor([True, False]),
    "empty": torch.zeros(0, 4),
    "strided": torch.arange(6.0).view(2, 3).T,
    0: {
        "step": torch.tensor(7.0),
        "exp_avg": torch.randn(2, 2, generator=torch.Generator().manual_seed(1)),
    },
    "0": {"step": torch.tensor(8.0)},
    "0.step": torch.tensor(9.0),
    "betas": (0.9, 0.999),
    "numbers": [1, 1.0, True, None, "x", 1e-300, 0.1 + 0.2, math.inf, -math.inf, math.nan],
    "nothing": {},
    "none": [],
    "dict": {"tensor": "a name", "tuple": [1], "float": "inf"},
}


def test_nested_state_survives_exactly_through_files(tmp_path: Path) -> None:
    tensors, tree = flatten(NESTED)
    save_checkpoint(tmp_path, 1, tensors, {"tree": tree})
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    loaded, state = checkpoint.load()
    assert same(unflatten(loaded, state["tree"]), NESTED)


def test_flatten_refuses_objects_and_names_their_path() -> None:
    with pytest.raises(TypeError, match=r"a\.1: a complex"):
        flatten({"a": [1, 2j]})


def adam(seed: int) -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = torch.nn.Linear(4, 3)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def train(model: torch.nn.Linear, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def test_optimizer_continues_exactly(tmp_path: Path) -> None:
    model, optimizer = adam(0)
    train(model, optimizer, range(0, 5))
    tensors, tree = flatten({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    save_checkpoint(tmp_path, 5, tensors, {"tree": tree})
    train(model, optimizer, range(5, 10))

    resumed, resumed_optimizer = adam(1)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.step == 5
    loaded, state = checkpoint.load()
    nested = unflatten(loaded, state["tree"])
    resumed.load_state_dict(nested["model"])
    resumed_optimizer.load_state_dict(nested["optimizer"])
    train(resumed, resumed_optimizer, range(5, 10))
    assert torch.equal(resumed.weight, model.weight) and torch.equal(resumed.bias, model.bias)
    assert same(resumed_optimizer.state_dict(), optimizer.state_dict())


def save(directory: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(
        directory, step, {"w": torch.full((100,), float(step))}, {"step": step}, keep
    ).path


def test_keeps_the_last_k_of_this_run(tmp_path: Path) -> None:
    for step in (5, 10, 100, 15):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000010",
        "step-00000015",
        "step-00000100",
    ]
    with pytest.raises(ValueError, match="keep = 0"):
        save(tmp_path, 20, keep=0)


def test_no_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "absent") is None


def truncate(path: Path) -> None:
    file = path / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def flip(path: Path) -> None:
    file = path / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def edit_state(path: Path) -> None:
    (path / "state.json").write_text(json.dumps({"step": 99}))


def drop_seal(path: Path) -> None:
    (path / "checkpoint.json").unlink()


def garble_seal(path: Path) -> None:
    (path / "checkpoint.json").write_text("{")


@pytest.mark.parametrize("damage", [truncate, flip, edit_state, drop_seal, garble_seal])
def test_damaged_checkpoint_is_skipped_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    save(tmp_path, 1)
    damaged = save(tmp_path, 2)
    damage(damaged)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.step == 1
    assert "step-00000002" in caplog.text and len(caplog.records) == 1
    tensors, state = checkpoint.load()
    assert state == {"step": 1} and torch.equal(tensors["w"], torch.ones(100))


def test_load_refuses_what_changed_after_it_was_found(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    flip(path)
    with pytest.raises(InputError, match=r"tensors\.safetensors: its checksum differs"):
        checkpoint.load()


def test_a_failed_save_leaves_the_old_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(tmp_path, 1, {"w": torch.zeros(1)}, {"loss": math.nan})
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.load()[1] == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_shared_memory_is_stored_twice(tmp_path: Path) -> None:
    base = torch.arange(4.0)
    loaded, _ = save_checkpoint(tmp_path, 1, {"a": base, "b": base[1:]}, {}).load()
    assert loaded["a"].tolist() == [0, 1, 2, 3] and loaded["b"].tolist() == [1, 2, 3]
