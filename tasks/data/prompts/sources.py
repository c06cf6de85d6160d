"""Which file or folder holds prompts in which form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from models.common.errors import InputError
from tasks.data.prompts.arrow_files import is_arrow_folder, read_arrow, read_parquet
from tasks.data.prompts.base import KEY, Prompt, PromptSource, texts_of
from tasks.data.prompts.text_files import read_csv, read_json_lines, read_text

if TYPE_CHECKING:
    from tasks.config.conditions import Conditions

EXPECTED = (
    "expected a .txt, .csv, .tsv, .jsonl or .parquet, a folder of captioned images, of .parquet "
    "files or of Dataset.save_to_disk"
)


def open_prompts(settings: Conditions, root: Path) -> PromptSource:
    """The prompts that `conditions` names; relative paths are below ``root``. Nothing is read yet,
    except where a folder says what it holds. Raises InputError.
    """
    if settings.prompts is None:
        raise InputError(f"{KEY} = null: {EXPECTED}, or dataset for the dataset's captions")
    if settings.path is None:
        return _captions_of_dataset(root)
    path = root / settings.path
    if path.is_dir():
        return PromptSource(str(path), _of_folder(path, settings))
    if not path.is_file():
        raise InputError(f"{KEY}: {path} is not there; {EXPECTED}")
    if not path.stat().st_size:
        raise InputError(f"{KEY}: {path} is empty; {EXPECTED}")
    kind = path.suffix.lower()
    if kind == ".zip":
        return PromptSource(str(path), _of_images(path))
    prompts = {
        ".txt": lambda: read_text(path, settings.encoding),
        ".csv": lambda: read_csv(path, settings.encoding, settings.column),
        ".tsv": lambda: read_csv(path, settings.encoding, settings.column),
        ".jsonl": lambda: read_json_lines(path, settings.encoding, settings.column),
        ".parquet": lambda: read_parquet([path], settings.column),
    }
    if kind not in prompts:
        raise InputError(f"{KEY}: {path} is a {kind or 'file without a suffix'}; {EXPECTED}")
    if settings.column is not None and kind == ".txt":
        raise InputError(f"conditions.column = {settings.column}: a .txt has no columns; use null")
    return PromptSource(str(path), prompts[kind]())


def _of_folder(path: Path, settings: Conditions) -> Iterator[Prompt]:
    from tasks.data.files import open_files

    if is_arrow_folder(path):
        return read_arrow(path, settings.column)
    names = open_files(path, KEY, EXPECTED).names
    tables = [path / name for name in names if name.endswith(".parquet")]
    tables = [file for file in tables if file.name != "metadata.parquet"]
    if tables:
        return read_parquet(tables, settings.column)
    return _of_images(path)


def _of_images(path: Path) -> Iterator[Prompt]:
    """The captions of all images of a folder or .zip, as of dataset.kind=folder."""
    from tasks.data.sources.folder import folder_captions

    names, captions = folder_captions(path, KEY)
    if captions is None:
        raise InputError(
            f"{KEY}: {path} has {len(names)} images without captions, expected metadata.csv, "
            ".jsonl or .parquet with file_name and text, or a .txt beside each image"
        )
    return _listed(str(path), names, captions)


def _captions_of_dataset(root: Path) -> PromptSource:
    from tasks.data.dataset import load_captions

    train, holdout = load_captions(root, "train"), load_captions(root, "holdout")
    if train is None or holdout is None:
        raise InputError(
            f"{KEY} = dataset: the images of data/dataset have no captions; give a file of prompts"
        )
    places = [f"train image {index}" for index in range(len(train))]
    held = [f"held-out image {index}" for index in range(len(holdout))]
    title = "data/dataset"
    return PromptSource(title, _listed(title, places, train), _listed(title, held, holdout))


def _listed(title: str, places: list[str], captions: list[list[str]]) -> Iterator[Prompt]:
    for place, texts in zip(places, captions, strict=True):
        yield from texts_of(texts, title, place)
