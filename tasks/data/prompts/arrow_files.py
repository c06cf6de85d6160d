"""Prompts of Parquet files and of folders that the `datasets` library saved (Arrow streams)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.common.errors import InputError
from tasks.data.prompts.base import KEY, Prompt, prompt_column, texts_of

ROWS = 4096  # read at once


def read_parquet(files: list[Path], wanted: str | None) -> Iterator[Prompt]:
    """A column of one file, or of several with the same columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in files:
        try:
            reader = pq.ParquetFile(path)
            name = prompt_column(reader.schema_arrow.names, wanted, path.name)
            batches = reader.iter_batches(ROWS, columns=[name])
            yield from _prompts(path.name, batches, name)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, "Parquet", error) from None


def read_arrow(folder: Path, wanted: str | None) -> Iterator[Prompt]:
    """A column of a folder that `datasets.Dataset.save_to_disk` wrote."""
    import pyarrow as pa

    for path in arrow_files(folder):
        try:
            with pa.memory_map(str(path)) as file:
                reader = pa.ipc.open_stream(file)
                name = prompt_column(reader.schema.names, wanted, path.name)
                batches = (batch.select([name]) for batch in reader)
                yield from _prompts(path.name, batches, name)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, "an Arrow stream", error) from None


def is_arrow_folder(folder: Path) -> bool:
    """Whether `datasets` wrote it: one dataset, or several of a DatasetDict."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def arrow_files(folder: Path) -> list[Path]:
    """The data files of a saved dataset, in their order. Raises InputError, one line."""
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        raise InputError(
            f"{KEY}: {folder} holds the splits {', '.join(splits)}, expected one; give "
            f"{folder / (splits[0] if splits else 'train')}"
        )
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = [entry["filename"] for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{KEY}: {folder / 'state.json'} names no data files, expected a folder of "
            "Dataset.save_to_disk; save it again"
        ) from None
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise InputError(
            f"{KEY}: {folder} keeps a choice of its rows apart; call flatten_indices() and "
            "save_to_disk again"
        )
    return [folder / name for name in names]


def _prompts(title: str, batches: Any, name: str) -> Iterator[Prompt]:
    row = 0
    for batch in batches:
        for value in batch.column(name).to_pylist():
            row += 1
            yield from texts_of(value, title, f"row {row}")


def _unreadable(path: Path, kind: str, error: Exception) -> InputError:
    reason = str(error).strip().split("\n")[0]
    return InputError(f"{KEY}: {path} is not readable as {kind} ({reason}); fetch it again")
