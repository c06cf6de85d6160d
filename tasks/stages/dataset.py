"""Images or series of any source -> data/dataset: split into train and holdout, checksummed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.utils import environment

if __name__ == "__main__":  # OpenMP reads its settings when torch is imported
    environment.prepare(Path.cwd())

from tasks.config.schema import Params
from tasks.data.image_dataset import write_images
from tasks.data.series_dataset import write_series
from tasks.utils.atomic import atomic_dir, atomic_write_json, sha256_file
from tasks.utils.cli import stage_main

# by kind of data (tasks/data/kinds.py)
WRITERS: dict[str, Callable[[Any, Path, Path], dict[str, Any]]] = {
    "images": write_images,
    "series": write_series,
}


def run(params: Params, root: Path) -> None:
    """Write data/dataset: manifest.json and what the writer of the kind of data makes.

    Raises InputError for data that cannot be used.
    """
    settings = params.dataset
    with atomic_dir(root / "data" / "dataset") as folder:
        described = WRITERS[settings.data_kind](settings, root, folder)
        manifest = {
            "kind": settings.data_kind,
            "params": settings.model_dump(mode="json", exclude={"digest"}),
            **described,
            "sha256": {file.name: sha256_file(file) for file in sorted(folder.iterdir())},
        }
        atomic_write_json(folder / "manifest.json", manifest)


if __name__ == "__main__":
    stage_main(run)
