"""What typed settings are made of: the base of their sections and plain field types.

A method's settings class lives beside the method and is made of these; no import of torch.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Item = TypeVar("Item")


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, defaults checked too.

    The text below a field says what it means, in params.yaml and in the forms of the Prefect UI.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )


def distinct(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """`items`, or ValueError if one comes twice."""
    if len(set(items)) < len(items):
        raise ValueError("expected distinct entries")
    return items


def not_a_flag(value: object) -> object:
    """`value`, or ValueError for a bool, which Python counts among the integers."""
    if isinstance(value, bool):
        raise ValueError("expected a whole number")
    return value


Natural = Annotated[int, Field(strict=True, ge=0)]
Count = Annotated[int, Field(strict=True, ge=1)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Size = Annotated[int, Field(strict=True, ge=4, le=1024)]
Rank = Annotated[int, Field(strict=True, ge=1, le=1024)]
Workers = Annotated[int, Field(strict=True, ge=0, le=1024)]
Order = Annotated[Literal[1, 2, 3], BeforeValidator(not_a_flag)]
Nonnegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1)]
PositiveFraction = Annotated[float, Field(strict=True, gt=0, le=1)]
Decay = Annotated[float, Field(strict=True, ge=0, lt=1)]
LearningRate = Annotated[float, Field(strict=True, gt=0, le=1)]
Flag = Annotated[bool, Field(strict=True)]
Precision = Literal["float32", "bfloat16", "float16"]
