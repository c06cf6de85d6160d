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
from tasks.data.sources.none import NoDataset
from tasks.utils.atomic import atomic_dir, atomic_write_json, sha256_file
from tasks.utils.cli import stage_main

Writer = Callable[[Any, Path, Path], dict[str, Any]]
# by kind of data (tasks/data/kinds.py)
WRITERS: dict[str, Writer] = {
    "images": write_images,
    "series": write_series,
}


def run(params: Params, root: Path) -> None:
    """Write data/dataset: manifest.json and what the writer of the kind of data makes.

    Raises InputError for data that cannot be used.
    """
    settings = params.dataset
    with atomic_dir(root / "data" / "dataset") as folder:
        write: Writer = nothing if isinstance(settings, NoDataset) else WRITERS[settings.data_kind]
        described = write(settings, root, folder)
        manifest = {
            "kind": settings.data_kind,
            "params": settings.model_dump(mode="json", exclude={"digest"}),
            **described,
            "sha256": {file.name: sha256_file(file) for file in sorted(folder.iterdir())},
        }
        atomic_write_json(folder / "manifest.json", manifest)


def nothing(settings: Any, root: Path, folder: Path) -> dict[str, Any]:
    """What the manifest says where there are no images."""
    counts = {"train": 0, "holdout": 0}
    return {"source": "none", "shape": None, "counts": counts, "class_names": [], "captions": False}


if __name__ == "__main__":
    stage_main(run)
