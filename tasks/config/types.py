"""Field types of the typed parameters, and the base of their sections."""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from tasks.utils.redaction import has_credentials


def inside_or_absolute(path: str) -> str:
    if path.startswith("~"):
        raise ValueError(
            "expected a path inside the project or an absolute one; write the home folder out"
        )
    if not os.path.isabs(path) and os.path.normpath(path).split(os.sep)[0] == "..":
        raise ValueError(
            "expected a path inside the project; give an absolute path for a place outside it"
        )
    return path


def without_credentials(text: str) -> str:
    if has_credentials(text):
        raise ValueError(
            "expected an address without user and password; these belong into environment variables"
        )
    return text


Item = TypeVar("Item")


def known_exclusion(name: str) -> str:
    if name not in ("mnist", "digits") and not name.endswith(".npz"):
        raise ValueError("expected mnist, digits, or the path of an .npz")
    return name


def distinct(items: tuple[Item, ...]) -> tuple[Item, ...]:
    if len(set(items)) < len(items):
        raise ValueError("expected distinct entries")
    return items


def regular(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"expected a regular expression ({error})") from None
    return text


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("expected a whole number")
    return value


Natural = Annotated[int, Field(strict=True, ge=0)]
Count = Annotated[int, Field(strict=True, ge=1)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Nonnegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1)]
Decay = Annotated[float, Field(strict=True, ge=0, lt=1)]
LearningRate = Annotated[float, Field(strict=True, gt=0, le=1)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1), AfterValidator(without_credentials)]
Pattern = Annotated[str, Field(min_length=1), AfterValidator(regular)]
LocalPath = Annotated[
    str,
    Field(min_length=1),
    AfterValidator(without_credentials),
    AfterValidator(inside_or_absolute),
]
Exclude = Annotated[LocalPath, AfterValidator(known_exclusion)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32,64}$")]
Size = Annotated[int, Field(strict=True, ge=4, le=1024)]
Channels = Annotated[Literal[1, 3], BeforeValidator(_no_bool)]
Order = Annotated[Literal[1, 2, 3], BeforeValidator(_no_bool)]
Precision = Literal["float32", "bfloat16", "float16"]


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, defaults checked too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
