"""Whether data/teacher and data/dataset go together."""

from __future__ import annotations

from pathlib import Path

import torch

from models.common.errors import InputError
from models.teachers.base import Denoiser
from tasks.data.dataset import has_data, load_manifest
from tasks.data.kinds import kind_of


@torch.no_grad()
def data_shape(teacher: Denoiser) -> tuple[int, ...]:
    """The shape of one decoded sample: (C, H, W) for images, (C, L) for series; a latent teacher
    decodes one.
    """
    if not teacher.codec.latent:
        return teacher.shape
    return tuple(teacher.decode(torch.zeros(1, *teacher.shape, device=teacher.device)).shape[1:])


def check_teacher_fits_dataset(teacher: Denoiser, root: Path) -> None:
    """Raise InputError unless the teacher makes data of the shape that data/dataset holds:
    figures of others would compare two different things.
    """
    manifest = load_manifest(root)
    if not has_data(root):
        return
    made, there = data_shape(teacher), tuple(manifest["shape"])
    if made == there:
        return
    raise InputError(
        f"the teacher makes {_times(made)}, data/dataset has {_times(there)}: expected the same "
        f"shape; {kind_of(manifest).fix(made, there)}, or choose another teacher"
    )


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
