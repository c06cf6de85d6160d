"""What a network gets beside the state and the time: class labels, embeddings, masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from models.common.errors import InputError


class Condition(Mapping[str, Tensor]):
    """A frozen mapping of tensors whose first dimension runs over the samples of a batch.

    The keys are plain names (``class_labels``, ``encoder_hidden_states``, ...), which
    models/teachers/network_call.py turns into the network's keyword arguments. ``len`` is the
    number of samples, not of keys. Distillation methods pass it on and never look inside.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None, **named: Tensor):
        self._tensors: dict[str, Tensor] = {**(tensors or {}), **named}
        sizes = {name: value.shape[:1] for name, value in self._tensors.items()}
        if not sizes:
            raise ValueError("a condition needs at least one tensor; use None for no condition")
        if len(set(sizes.values())) != 1 or not next(iter(sizes.values())):
            shapes = {name: tuple(value.shape) for name, value in self._tensors.items()}
            raise ValueError(f"condition {shapes}: expected the same number of rows everywhere")

    @overload
    def __getitem__(self, key: str) -> Tensor: ...
    @overload
    def __getitem__(self, key: slice | Tensor) -> Condition: ...
    def __getitem__(self, key: str | slice | Tensor) -> Tensor | Condition:
        """The tensor of a name, or the chosen rows (slice, indices or mask) of every tensor."""
        if isinstance(key, str):
            return self._tensors[key]
        return Condition({name: value[key] for name, value in self._tensors.items()})

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, key: object) -> bool:
        return key in self._tensors

    def keys(self) -> Any:  # the inherited views would take len(self) for the number of keys
        return self._tensors.keys()

    def items(self) -> Any:
        return self._tensors.items()

    def values(self) -> Any:
        return self._tensors.values()

    def __len__(self) -> int:
        return len(next(iter(self._tensors.values())))

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(v.shape)}" for name, v in self._tensors.items())
        return f"Condition({shapes})"

    def to(self, device: torch.device | str) -> Condition:
        """The same condition on another device."""
        return Condition({name: value.to(device) for name, value in self._tensors.items()})

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """The rows of all parts one after the other; ValueError if their keys differ."""
        names = set(parts[0].keys())
        if any(set(part.keys()) != names for part in parts):
            keys = [sorted(part.keys()) for part in parts]
            raise ValueError(f"conditions with the keys {keys}: expected the same keys")
        return Condition({name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def repeat(self, times: int) -> Condition:
        """All rows ``times`` times, one whole copy after the other."""
        return Condition.cat([self] * times)

    def groups(self) -> Tensor:
        """(n,) int64: rows that say the same have the same number, from 0 up."""
        groups = torch.zeros(len(self), dtype=torch.long, device=next(iter(self.values())).device)
        for value in self.values():
            own = torch.unique(
                value.flatten(1) if value.dim() > 1 else value, dim=0, return_inverse=True
            )[1]
            pairs = torch.stack([groups, own], 1)
            groups = torch.unique(pairs, dim=0, return_inverse=True)[1]
        return groups


class ConditionTable:
    """All conditions that a teacher of prompts is used with; a label is the number of a row.

    ``rows``: one row per prompt, in memory or mapped to a file; ``null``: the one row that guidance
    leads away from (the empty or a negative prompt), or None; ``training``: how many rows, from the
    first, are prompts of training, None for all; the others are held out. Raises InputError where
    rows and null are not of one kind.
    """

    def __init__(self, rows: Condition, null: Condition | None = None, training: int | None = None):
        self.rows, self.null = rows, null
        self.training = len(rows) if training is None else training
        if null is None:
            return
        given, needed = ({k: tuple(v.shape[1:]) for k, v in c.items()} for c in (null, rows))
        if len(null) != 1 or given != needed:
            raise InputError(
                f"conditions: the null condition is {null}, the others {rows}; expected one row of "
                "the same keys and shapes; encode both with the same encoders and lengths"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Tensor) -> Condition:
        """The rows of ``indices`` (n,) int64; InputError for one that is not there."""
        where = next(iter(self.rows.values())).device
        if bool((indices < 0).any()) or bool((indices >= len(self)).any()):
            raise InputError(
                f"conditions: rows {int(indices.min())} to {int(indices.max())} asked for, the "
                f"table has 0 to {len(self) - 1}; the trajectories may be of another table"
            )
        return self.rows[indices.to(where)]

    def nulls(self, n: int) -> Condition:
        """The null condition n times; ValueError where there is none."""
        if self.null is None:
            raise ValueError("this table has no null condition")
        return Condition({name: v.expand(n, *v.shape[1:]) for name, v in self.null.items()})


def class_condition(labels: Tensor | None) -> Condition | None:
    """The condition of class labels (n,) int64; None where there are none (-1 stands for that)."""
    if labels is None or bool((labels < 0).any()):
        return None
    return Condition(class_labels=labels)
