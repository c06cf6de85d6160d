"""Checkpoints that workers write together: whole or not at all, read by any number of them."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from models.training.sharding import Share, worker_mesh
from tasks.training import sharded_checkpoints
from tasks.training.checkpoints import latest_checkpoint
from tasks.training.sharded_checkpoints import latest_sharded, load_sharded, save_sharded

ONE = Share()
WHOLE = {
    "even": torch.arange(24.0).view(4, 6),
    "odd": torch.arange(15.0).view(5, 3),
    "one": torch.tensor([[7.0, 8.0]]),  # a part of it is empty
    "half": torch.arange(8).to(torch.bfloat16),
    "step": torch.tensor(3.0),
}
STATE = {"nested": [1, {"tensor": "even"}]}


def blank() -> dict[str, Tensor]:
    return {name: torch.full_like(value, -1) for name, value in WHOLE.items()}


def same(found: dict[str, Tensor]) -> bool:
    return found.keys() == WHOLE.keys() and all(torch.equal(found[n], v) for n, v in WHOLE.items())


def test_one_worker_writes_and_reads(tmp_path: Path) -> None:
    """Values in place, no file that could be a pickle, the last two kept."""
    for step in (1, 2, 3):
        save_sharded(tmp_path, step, WHOLE, STATE, 2, ONE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    found = latest_sharded(tmp_path, ONE)
    assert found is not None and found.step == 3
    assert {path.suffix for path in found.path.iterdir()} == {".json", ".safetensors"}
    like = blank()
    tensors, state = load_sharded(found, like, ONE)
    assert same(tensors) and state == STATE
    assert torch.equal(like["odd"], WHOLE["odd"])


def test_a_damaged_or_missing_part_is_no_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_sharded(tmp_path, step, WHOLE, STATE, 3, ONE)
    (part,) = (tmp_path / "step-00000003").glob("shard-*")
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    (part,) = (tmp_path / "step-00000002").glob("shard-*")
    part.unlink()
    found = latest_sharded(tmp_path, ONE)
    assert found is not None and found.step == 1


def test_another_methods_checkpoint_is_refused(tmp_path: Path) -> None:
    found = save_sharded(tmp_path, 1, WHOLE, STATE, 1, ONE)
    with pytest.raises(RuntimeError, match="belongs to another method: odd"):
        load_sharded(found, {"even": torch.zeros(4, 6), "half": WHOLE["half"], "one": WHOLE["one"]}, ONE)  # fmt: skip
    with pytest.raises(Exception, match="[Ss]ize"):
        load_sharded(found, blank() | {"even": torch.zeros(4, 7)}, ONE)


def _worker(rank: int, port: int, place: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    share, mesh = Share(rank, 2), worker_mesh(torch.device("cpu"))
    folder, from_one = Path(place) / "two", Path(place) / "one"

    def parts(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: distribute_tensor(v, mesh, [Shard(0)]) if v.dim() else v
                for n, v in values.items()}  # fmt: skip

    def whole(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: v.full_tensor() if isinstance(v, DTensor) else v for n, v in values.items()}

    save_sharded(folder, 1, parts(WHOLE), STATE, 2, share)
    assert (folder / "step-00000001" / "checkpoint.json").is_file()  # on every worker
    for place_of in (folder, from_one):
        found = latest_sharded(place_of, share)
        assert found is not None
        tensors, state = load_sharded(found, parts(blank()), share)
        assert same(whole(tensors)) and state == STATE

    if rank == 1:  # dies before its part is written, while the other one waits for it
        sharded_checkpoints.dcp.save = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    save_sharded(folder, 2, parts(WHOLE), STATE, 2, share)


def test_two_workers_write_and_a_killed_one_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """What one worker wrote is read by two, and the other way round. A worker that dies
    before its part is written ends the other one, and there is no new checkpoint.
    """
    save_sharded(tmp_path / "one", 1, WHOLE, STATE, 1, ONE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ended = (
        torch.multiprocessing.ProcessExitedException,  # the killed one
        torch.multiprocessing.ProcessRaisedException,  # or the other, which has lost it
    )
    with pytest.raises(ended):
        torch.multiprocessing.spawn(_worker, (port, str(tmp_path)), nprocs=2)
    folder = tmp_path / "two"
    found = latest_sharded(folder, ONE)
    assert found is not None and found.step == 1 and found == latest_checkpoint(folder)
    parts = sorted(found.path.glob("shard-*"))
    with safe_open(parts[0], "pt") as first, safe_open(parts[1], "pt") as second:
        rows = [file.get_slice("odd").get_shape()[0] for file in (first, second)]
    assert rows == [3, 2]
    seal = json.loads((found.path / "checkpoint.json").read_text())["sha256"]
    assert {part.name for part in parts} < seal.keys()
    tensors, _ = load_sharded(found, blank(), ONE)
    assert same(tensors)
    save_sharded(folder, 2, WHOLE, STATE, 2, ONE)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000002"]
