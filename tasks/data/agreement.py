"""Whether data/teacher and data/dataset go together."""

from __future__ import annotations

from pathlib import Path

import torch

from models.common.errors import InputError
from models.teachers.base import Denoiser
from tasks.data.dataset import load_manifest


@torch.no_grad()
def data_shape(teacher: Denoiser) -> tuple[int, ...]:
    """The shape of one decoded sample: (C, H, W) for images; a latent teacher decodes one."""
    if not teacher.codec.latent:
        return teacher.shape
    return tuple(teacher.decode(torch.zeros(1, *teacher.shape, device=teacher.device)).shape[1:])


def check_teacher_fits_dataset(teacher: Denoiser, root: Path) -> None:
    """Raise InputError unless the teacher makes data of the shape that data/dataset holds:
    figures of others would compare two different things.
    """
    made, there = data_shape(teacher), tuple(load_manifest(root)["shape"])
    if made == there:
        return
    square = len(made) == 3 and made[1] == made[2]
    fixes = [f"dataset.size={made[-1]}"] if made[-1] != there[-1] else []
    fixes += [f"images of {made[0]} channels (dataset.channels)"] if made[0] != there[0] else []
    fix = f"give it {' and '.join(fixes)}" if square else "images of a dataset are square"
    raise InputError(
        f"the teacher makes {_times(made)}, data/dataset has {_times(there)}: expected the same "
        f"shape; {fix}, or choose another teacher"
    )


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
