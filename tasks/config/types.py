"""Field types of the typed parameters that name files, folders and addresses of the user."""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from models.common.config import not_a_flag
from models.evaluation.registry import METRICS
from tasks.utils.redaction import has_credentials


def inside_or_absolute(path: str) -> str:
    if "\0" in path:
        raise ValueError("expected a path, which has no zero byte")
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


def known_exclusion(name: str) -> str:
    if name not in ("mnist", "digits") and not name.endswith(".npz"):
        raise ValueError("expected mnist, digits, or the path of an .npz")
    return name


def regular(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"expected a regular expression ({error})") from None
    return text


def known_metric(name: str) -> str:
    if name not in METRICS:
        raise ValueError(f"expected one of {', '.join(sorted(METRICS))}")
    return name


def as_list(value: object) -> object:
    """One name stands for a list of one."""
    return (value,) if isinstance(value, str) else value


Text = Annotated[str, Field(min_length=1), AfterValidator(without_credentials)]
Pattern = Annotated[str, Field(min_length=1), AfterValidator(regular)]
LocalPath = Annotated[
    str,
    Field(min_length=1),
    AfterValidator(without_credentials),
    AfterValidator(inside_or_absolute),
]
Exclude = Annotated[LocalPath, AfterValidator(known_exclusion)]
MetricName = Annotated[str, Field(min_length=1), AfterValidator(known_metric)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32,64}$")]
Channels = Annotated[Literal[1, 3], BeforeValidator(not_a_flag)]
