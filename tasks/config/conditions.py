"""The section `conditions`: the prompts of text-to-image teachers, and how they are encoded."""

from __future__ import annotations

import codecs
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from models.common.config import Count, Natural, Section, Seed
from tasks.config.types import Digest, LocalPath, Text

DATASET = "dataset"


def known_encoding(name: str) -> str:
    try:
        if codecs.lookup(name)._is_text_encoding:
            return name
    except LookupError:
        pass
    raise ValueError("expected the name of a text encoding, such as utf-8 or latin-1")


class Conditions(Section):
    prompts: LocalPath | None = None
    """Of text-to-image teachers: a .txt, .csv, .jsonl or .parquet file, a folder of captioned
    images, of .parquet files or of the `datasets` library; "dataset": the dataset's captions.
    """
    column: Text | None = None
    """The column of prompts; null: text, caption, captions or prompt."""
    encoding: Annotated[str, Field(min_length=1), AfterValidator(known_encoding)] = "utf-8"
    """Of text files; a byte-order mark goes before it."""
    empty: Literal["skip", "refuse"] = "skip"
    """Empty prompts."""
    too_long: Literal["refuse", "truncate"] = "refuse"
    """Prompts of more tokens than the teacher's encoders read."""
    negative_prompt: str | None = None
    """What guidance leads away from; null: the teacher's own, mostly the empty prompt."""
    limit: Annotated[int, Field(strict=True, ge=2)] | None = None
    """At most so many distinct prompts, chosen at random; null = all."""
    holdout: Natural = 100
    """Of them, prompts kept for validation and evaluation; of captions of the dataset, those of
    its held-out images are.
    """
    dtype: Literal["float16", "float32"] = "float16"
    """Of the stored embeddings."""
    batch_size: Count = 32
    """Prompts encoded at once; part of the data's identity, since kernels round by batch."""
    shard_size: Count = 1024
    """Prompts per shard; finished shards survive a kill."""
    seed: Seed = 0
    """Of the choice of prompts."""
    digest: Digest | None = None
    """Of the content of prompts; runs fill it in, so that new content runs the stage again."""

    @property
    def path(self) -> str | None:
        """The file or folder of prompts; None for captions of the dataset, and for none at all."""
        return None if self.prompts == DATASET else self.prompts
