"""A table of encoded prompts that lies on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.common.errors import InputError
from models.teachers.conditioning import Condition, ConditionTable


class StoredConditions(ConditionTable):
    """Rows are read as they are asked for, so that a table may be larger than memory.

    ``views``: by key of the condition, an array-like (n, ...) that takes row numbers int64 (k,) and
    gives a new array; ``null`` and ``training`` as of :class:`ConditionTable`.
    """

    def __init__(self, views: Mapping[str, Any], null: Condition | None, training: int):
        self.views = dict(views)
        first = self[torch.zeros(1, dtype=torch.int64)]
        super().__init__(first, null, training)  # both of one kind

    def __len__(self) -> int:
        return len(next(iter(self.views.values())))

    def __getitem__(self, indices: Tensor) -> Condition:
        """The rows of ``indices`` (n,) int64, on the CPU; InputError for one that is not there."""
        rows = np.asarray(indices.cpu())
        if rows.min() < 0 or rows.max() >= len(self):
            raise InputError(
                f"conditions: rows {rows.min()} to {rows.max()} asked for, the table has 0 to "
                f"{len(self) - 1}; the trajectories may be of another table"
            )
        return Condition({name: torch.from_numpy(view[rows]) for name, view in self.views.items()})
