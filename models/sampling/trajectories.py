"""Teacher trajectories whose Brownian paths have known partial signatures.

A trajectory is a function of (seed, split, index), the coarse grid and the lane size alone: its
noise comes from generators of its own, and the network always sees ``lane`` states at a time,
aligned to the global index and padded at the end, because convolution and matrix kernels round
differently for other batch sizes. So bytes do not depend on workers, shards or batch size.

The features xi of a path are drawn first, then its fine noise given them,

    z = Q xi + (I - Q Q^T) z',      xi, z' ~ N(0, I) independent                               (5a)

where Q has the orthonormal columns of all intervals (5). So z ~ N(0, I) and Q^T z = xi: nobody has
to store xi, for whoever wants it draws it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from models.common.errors import InputError
from models.common.precision import DTYPES
from models.common.random import generator_for
from models.sampling.chain import Chain
from models.sampling.signature import Basis, feature_matrix
from models.teachers.base import Denoiser
from models.teachers.conditioning import Condition
from models.teachers.guidance import Guidance, GuidanceRange, with_weights

SPLITS = {"train": 0, "validation": 1}
NOISE, FEATURES, WEIGHTS = 7, 23, 31  # streams of random numbers: start and fine noise, features,
# weights of guidance
Advance = Callable[[int], None]


@dataclass(frozen=True)
class PathSpec:
    """What a trajectory is a function of, beside the teacher. ``grid``: (N + 1,) fine indices;
    ``parts``: N bases.
    """

    chain: Chain
    grid: np.ndarray
    parts: Sequence[Basis]
    seed: int
    lane: int = 64
    precision: str = "float32"
    guidance: Guidance = 1.0
    classes: tuple[int, ...] | None = None


def path_noise(
    spec: PathSpec, split: str, indices: Sequence[int], shape: tuple[int, ...]
) -> Tensor:
    """(n, K + 1, *shape) standard normals on the CPU: the start and the K steps of each
    trajectory, by (5a) along the features of `path_features`; plainly drawn where the spec has no
    intervals yet.
    """
    size = (spec.chain.steps + 1, *shape)
    free = [
        torch.randn(size, generator=generator_for("cpu", spec.seed, NOISE, SPLITS[split], i))
        for i in indices
    ]
    if spec.parts:
        xi = path_features(spec.seed, split, indices, kept_features(spec.parts), shape)
        matrix = (
            torch.from_numpy(feature_matrix(spec.parts)).float().flatten(0, 1)
        )  # Q^T: (N m', K)
        with _one_thread():
            for noise, wanted in zip(free, xi, strict=True):
                z = noise[1:].flatten(1)  # (K, pixels), a view
                z += matrix.T @ (wanted.flatten(0, 1).flatten(1) - matrix @ z)
    return torch.stack(free)


def path_features(
    seed: int, split: str, indices: Sequence[int], kept: np.ndarray, shape: tuple[int, ...]
) -> Tensor:
    """xi of paths, (n, N, m + 1, *shape) float32 on the CPU: standard normals, a function of
    (seed, split, index) and of how many intervals and features there are.

    ``kept``: (N, m + 1) bool; a feature that is not kept is zero.
    """
    size = (*kept.shape, *shape)
    if not kept.any():  # a deterministic chain: there is nothing to draw
        return torch.zeros(len(indices), *size)
    drawn = [
        torch.randn(size, generator=generator_for("cpu", seed, FEATURES, SPLITS[split], int(i)))
        for i in indices
    ]
    mask = torch.from_numpy(kept).float().reshape(*kept.shape, *(1 for _ in shape))
    return torch.stack(drawn) * mask if drawn else torch.zeros(0, *size)


def kept_features(parts: Sequence[Basis]) -> np.ndarray:
    """(N, m + 1) bool: which features of which interval are not dropped."""
    return np.stack([part.kept for part in parts])


def path_labels(
    spec: PathSpec, teacher: Denoiser, indices: Sequence[int], split: str = "train"
) -> Tensor | None:
    """(n,) int64: the classes, or the prompts of the split, in turn, evenly; None for unconditional
    teachers.
    """
    if not teacher.conditional:
        return None
    labels = teacher.labels_of(split) if spec.classes is None else spec.classes
    return torch.tensor([labels[i % len(labels)] for i in indices])


def path_weights(
    guidance: Guidance, seed: int, split: str, indices: Sequence[int]
) -> Tensor | None:
    """(n,) float32 on the CPU: a weight of guidance for each path, uniform in a range, a function
    of (seed, split, index) and of the range; None where all have one number.
    """
    if not isinstance(guidance, GuidanceRange):
        return None
    generators = (generator_for("cpu", seed, WEIGHTS, SPLITS[split], int(i)) for i in indices)
    return guidance.at(torch.tensor([float(torch.rand((), generator=g)) for g in generators]))


def path_condition(
    teacher: Denoiser, labels: Tensor | None, weights: Tensor | None = None
) -> Condition | None:
    """The condition of stored labels, on the teacher's device; ``weights`` (n,): of guidance, where
    every path has its own.
    """
    condition = None if labels is None else teacher.encode_condition(labels.to(teacher.device))
    if condition is None or weights is None:
        return condition
    return with_weights(condition, weights)


def labels_and_condition(
    spec: PathSpec, teacher: Denoiser, split: str, indices: Sequence[int]
) -> tuple[Tensor | None, Condition | None]:
    """:func:`path_labels` of some paths, and their condition, weights of guidance included."""
    labels = path_labels(spec, teacher, indices, split)
    weights = path_weights(spec.guidance, spec.seed, split, indices)
    return labels, path_condition(teacher, labels, weights)


def teacher_paths(
    teacher: Denoiser,
    spec: PathSpec,
    split: str,
    start: int,
    stop: int,
    *,
    batch_size: int = 256,
    advance: Advance | None = None,
) -> dict[str, np.ndarray]:
    """Trajectories ``start`` to ``stop`` (exclusive) of a split.

    Returns float32 ``Y`` (n, N + 1, *shape), the states at the coarse grid, and int64 ``labels``
    (n,), -1 for unconditional teachers; their features are those of `path_features`. ``advance`` is
    called with the number of trajectories that made one more step.
    """
    lane = spec.lane
    first, lanes = start // lane, -(-stop // lane)
    together = max(1, batch_size // lane)
    pieces = []
    for group in range(first, lanes, together):
        low, high = group * lane, min(group + together, lanes) * lane
        inside = slice(max(start, low) - low, min(stop, high) - low)
        after_step = partial(advance, inside.stop - inside.start) if advance is not None else None
        with _lane_threads(teacher.device) as pool:
            piece = _advance_together(teacher, spec, split, range(low, high), after_step, pool)
        pieces.append(_finite({name: array[inside] for name, array in piece.items()}))
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _finite(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays; InputError if a trajectory holds NaN or infinity."""
    bad = ~np.isfinite(arrays["Y"]).all(axis=tuple(range(2, arrays["Y"].ndim)))
    if bad.any():
        point = int(bad.any(0).argmax())
        raise InputError(
            f"trajectories: the teacher gives NaN or infinity in {int(bad.any(1).sum())} of "
            f"{len(bad)} trajectories, first at coarse point {point}; try trajectories.precision = "
            "float32, and check the teacher with its own pipeline"
        )
    return arrays


@torch.no_grad()
def _advance_together(
    teacher: Denoiser,
    spec: PathSpec,
    split: str,
    indices: range,
    after_step: Callable[[], None] | None,
    pool: Executor | None = None,
) -> dict[str, np.ndarray]:
    chain, device = spec.chain, teacher.device
    noise = path_noise(spec, split, indices, teacher.shape).to(device)
    labels, condition = labels_and_condition(spec, teacher, split, indices)
    x, z = noise[:, 0].clone(), noise[:, 1:]
    states = [x.cpu().numpy()]
    coarse = set(spec.grid.tolist())
    for k in range(chain.steps):
        x0 = _in_lanes(teacher, spec, x, float(chain.levels.t[k]), condition, pool)
        x = float(chain.a[k]) * x + float(chain.b[k]) * x0 + float(chain.s[k]) * z[:, k]
        if k + 1 in coarse:
            states.append(x.cpu().numpy())
        if after_step is not None:
            after_step()
    none = torch.full((len(x),), -1)
    return {
        "Y": np.stack(states, 1),
        "labels": (none if labels is None else labels).numpy().astype(np.int64),
    }


@torch.no_grad()
def movement(teacher: Denoiser, spec: PathSpec) -> np.ndarray:
    """(K - 1,) mean squared change of the denoised image per fine step, on one lane of pilot paths
    (train split).
    """
    chain, device = spec.chain, teacher.device
    pilots = range(spec.lane)
    noise = path_noise(spec, "train", pilots, teacher.shape).to(device)
    _, condition = labels_and_condition(spec, teacher, "train", pilots)
    x, before, moved = noise[:, 0], None, []
    with _lane_threads(device):
        for k in range(chain.steps):
            x0 = _in_lanes(teacher, spec, x, float(chain.levels.t[k]), condition)
            if before is not None:
                moved.append(float((x0 - before).square().mean()))
            before = x0
            x = float(chain.a[k]) * x + float(chain.b[k]) * x0 + float(chain.s[k]) * noise[:, k + 1]
    return np.asarray(moved)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums whose rounding does not depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _lane_threads(device: torch.device) -> Iterator[Executor | None]:
    """On a CPU, threads that take a lane each: threads inside kernels round differently by their
    number.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu":
        yield None
        return
    with (
        _one_thread(),
        ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        yield pool if threads > 1 else None


def _in_lanes(
    teacher: Denoiser,
    spec: PathSpec,
    x: Tensor,
    t: float,
    condition: Condition | None,
    pool: Executor | None = None,
) -> Tensor:
    half = spec.precision != "float32"

    @torch.no_grad()
    def one(low: int) -> Tensor:
        rows = slice(low, low + spec.lane)
        with torch.autocast(x.device.type, DTYPES[spec.precision], enabled=half):
            return teacher.denoise(
                x[rows], t, None if condition is None else condition[rows], spec.guidance
            )

    lows = range(0, len(x), spec.lane)
    return torch.cat(list(map(one, lows) if pool is None else pool.map(one, lows))).float()
