"""Checkpoints of sharded networks: each worker writes its own part, and any number of workers reads
them.

``torch.distributed.checkpoint`` plans who writes and who reads what. Its storage is safetensors
files here, one a worker, with the place of every part in their headers: no pickle. They lie in the
folder of an ordinary checkpoint beside numbers and single values, which the first worker writes,
and the folder appears whole or not at all.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)

from models.training.sharding import Share
from tasks.training.checkpoints import (
    Checkpoint,
    check_keep,
    folder_of,
    latest_checkpoint,
    remove_earlier,
    seal,
    write_files,
)
from tasks.utils.atomic import atomic_dir
from tasks.utils.failpoints import reach


def save_sharded(
    directory: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int,
    share: Share,
) -> Checkpoint:
    """As :func:`tasks.training.checkpoints.save_checkpoint`, by all workers together; ``directory``
    is one that all of them see. All workers call, with the same names and state.
    """
    check_keep(keep)
    path = folder_of(directory, step)
    parts = {name: t.detach().contiguous() for name, t in tensors.items() if t.dim()}
    single = {name: t for name, t in tensors.items() if not t.dim()}
    with _folder(path, share) as temporary:
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        with _told(share):
            dcp.save(parts, storage_writer=writer, no_dist=share.world == 1)
        if share.rank == 0:
            write_files(temporary, single, state)
            reach("checkpoint.tensors")
            seal(temporary, step)
    if share.rank == 0:
        reach("checkpoint.written")
        remove_earlier(directory, step, keep)
    return Checkpoint(path, step)


def latest_sharded(directory: Path, share: Share) -> Checkpoint | None:
    """The last sound checkpoint, as the first worker finds it. All workers call."""
    found = latest_checkpoint(directory) if share.rank == 0 else None
    step = share.from_first(-1 if found is None else found.step)
    return None if step < 0 else Checkpoint(folder_of(directory, step), step)


def load_sharded(
    checkpoint: Checkpoint, like: Mapping[str, Tensor], share: Share
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, state) of a sound checkpoint, the parts filled in place. ``like``: tensors by name
    as they were saved, sharded in any way or not at all. All workers call.

    Raises RuntimeError if the checkpoint has others, or of other shapes.
    """
    tensors, state = checkpoint.read()
    reader = HuggingFaceStorageReader(str(checkpoint.path))
    names = set(reader.read_metadata().state_dict_metadata) - set(tensors)
    if unknown := sorted(names - set(like)):
        raise RuntimeError(f"{checkpoint.path} belongs to another method: {unknown[0]}")
    parts = {name: like[name].detach() for name in sorted(names)}  # alike on all workers
    with _told(share):
        dcp.load(parts, storage_reader=reader, no_dist=share.world == 1)
    return tensors | parts, state


@contextmanager
def _folder(path: Path, share: Share) -> Iterator[Path]:
    """The folder that becomes ``path``, on all workers; the first one makes and renames it, when
    all have left the block.
    """
    if share.world == 1:
        with atomic_dir(path) as temporary:
            yield temporary
    elif share.rank == 0:
        with atomic_dir(path) as temporary:
            share.from_first(temporary.name)
            yield temporary
        share.from_first(0)
    else:
        yield path.with_name(share.from_first(""))
        share.from_first(0)  # nobody goes on before it is there


@contextmanager
def _told(share: Share) -> Iterator[None]:
    """What a worker could not write or read, as itself: the machine's refusals get one line."""
    try:
        with warnings.catch_warnings():
            # that there is no process group, where one worker needs none
            warnings.simplefilter("ignore", UserWarning)
            yield
    except CheckpointException as error:
        failures = [failure for failure, _ in error.failures.values()]
        raise failures[0] from error
