"""The section `dataset`: one of the kinds of `tasks.data.sources`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from tasks.data.sources import SOURCES, settings_class
from tasks.data.sources.base import DataSettings

if TYPE_CHECKING:
    Dataset = DataSettings
else:
    Dataset = Annotated[Union[tuple(map(settings_class, SOURCES))], Field(discriminator="kind")]  # noqa: UP007
