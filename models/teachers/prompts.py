"""What the families of text-to-image models have in common.

Their encoders are used once, by :meth:`PromptDenoiser.encode_prompts`. What comes out is kept in a
table of conditions; from then on a label is the number of a row, as it is the number of a class
elsewhere, and the encoders are not needed.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from models.common.errors import InputError
from models.teachers.conditioning import Condition, ConditionTable
from models.teachers.diffusers_model import DiffusersDenoiser


class PromptDenoiser(DiffusersDenoiser):
    """States (C, H, W); a family says how its pipeline encodes prompts.

    ``null_prompt``: what guidance leads away from, or None for models without classifier-free
    guidance. ``text_parts``: the parts of a pipeline that prompts alone need.
    """

    null_prompt: ClassVar[str | None] = ""
    text_parts: ClassVar[frozenset[str]] = frozenset({"tokenizer", "text_encoder"})

    @classmethod
    def encode_prompts(cls, pipe: Any, prompts: Sequence[str]) -> Condition:
        """The conditions of n prompts as the stock pipeline encodes them, padded to its own length:
        float32 embeddings and int64 masks on the CPU, one row per prompt.

        Raises InputError for a pipeline whose encoders were left out.
        """
        cls.check_encoders(pipe)
        with torch.no_grad():
            return as_rows(cls._encode(pipe, list(prompts)))

    @classmethod
    def encode_null(cls, pipe: Any, negative: str | None = None) -> Condition | None:
        """One row that guidance leads away from, as the stock pipeline encodes a ``negative``
        prompt, or none; None without classifier-free guidance.
        """
        if cls.null_prompt is None:
            return None
        return cls.encode_prompts(pipe, [cls.null_prompt if negative is None else negative])

    @classmethod
    def check_encoders(cls, pipe: Any) -> None:
        """InputError where the pipeline was opened without them."""
        if missing := sorted(part for part in cls.needed(pipe) if getattr(pipe, part) is None):
            raise InputError(
                f"teacher {type(pipe).__name__}: prompts need its {', '.join(missing)}, which are "
                "not there; expected the whole pipeline"
            )

    @classmethod
    def needed(cls, pipe: Any) -> frozenset[str]:
        """Those of ``text_parts`` that this pipeline cannot encode without."""
        return cls.text_parts

    @classmethod
    def check_pipeline(cls, pipe: Any) -> None:
        """InputError for a pipeline that uses the network in another way than this family does."""

    @classmethod
    def _encode(cls, pipe: Any, prompts: list[str]) -> dict[str, Tensor]:
        """The condition by the pipeline's own ``encode_prompt``."""
        raise NotImplementedError

    @property
    def condition_kind(self) -> str:
        return "prompts"

    @property
    def can_guide(self) -> bool:
        return self.conditions is not None and self.conditions.null is not None

    def set_conditions(self, table: ConditionTable | None) -> None:
        """Let labels be the numbers of the rows of ``table``."""
        self.conditions = table
        self.num_classes = None if table is None else len(table)

    def encode_condition(self, labels: Tensor | None) -> Condition | None:
        """The rows (n,) int64 of the table; InputError where there is none."""
        table = self._table()
        if labels is None:
            raise InputError("this teacher takes prompts: expected one row's number per sample")
        return table[labels].to(self.device)

    def labels_of(self, split: str) -> range:
        """Rows of the table: prompts of training, or held-out ones for "validation" where there
        are any.
        """
        table = self._table()
        held = split == "validation" and table.training < len(table)
        return range(table.training, len(table)) if held else range(table.training)

    def null_condition(self, n: int) -> Condition:
        return self._table().nulls(n).to(self.device)

    def _table(self) -> ConditionTable:
        if self.conditions is None:
            raise InputError(
                f"teacher {type(self).__name__}: it takes prompts, and has no table of encoded "
                "ones; expected one made by its encode_prompts and given to set_conditions"
            )
        return self.conditions

    @classmethod
    def sized(cls, network: Any, pixels: int, size: int | None) -> tuple[int, ...]:
        """Of square images; ``size`` must be a multiple of what the network and the autoencoder
        need.
        """
        if size is None:
            return super().sized(network, pixels, None)
        multiple = pixels * cls.multiple(network.config)
        if size % multiple or size < multiple:
            raise InputError(
                f"teacher.size = {size}: expected a multiple of {multiple}, {pixels} for the "
                f"autoencoder and {multiple // pixels} for its {type(network).__name__}"
            )
        channels = cls.state_channels(network.config)
        return channels, size // pixels, size // pixels

    @staticmethod
    def state_channels(config: Any) -> int:
        """Of one state."""
        return int(config.in_channels)

    @staticmethod
    def multiple(config: Any) -> int:
        """What the sizes of states must be multiples of."""
        raise NotImplementedError

    @property
    def stride(self) -> int:
        return self.multiple(self.network.config)


def as_rows(encoded: dict[str, Tensor]) -> Condition:
    """Float32 embeddings and int64 masks on the CPU."""
    kept = {name: v.float() if v.is_floating_point() else v.long() for name, v in encoded.items()}
    return Condition(kept).to("cpu")


def default_of(pipe: Any, argument: str) -> Any:
    """What an argument of the pipeline's call is where the caller says nothing."""
    return inspect.signature(type(pipe).__call__).parameters[argument].default


def refuse_options(network: Any, expected: dict[str, tuple[Any, ...]]) -> None:
    """InputError for a network whose config has other values than the ``expected`` ones."""
    for option, values in expected.items():
        if (found := network.config.get(option)) not in values:
            known = " or ".join("null" if value is None else repr(value) for value in values)
            raise InputError(
                f"teacher's {type(network).__name__}: {option} = {found!r}; expected {known}: its "
                "further inputs are not supported"
            )
