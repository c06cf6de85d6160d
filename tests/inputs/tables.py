"""Parquet files with the images inside."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.inputs.making import content, made, png_bytes, tiff
from tests.inputs.rows import Row

TITLE = "Parquet (`dataset.kind: parquet`)"


def write(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def shards(root: Path) -> None:
    for shard in range(2):
        images = [{"bytes": png_bytes(10 * shard + i), "path": f"{i}.png"} for i in range(2)]
        write(
            root / "in" / f"train-{shard:05}.parquet",
            {"image": images, "label": [0, 1], "text": ["x", None]},
        )
    made(root, kind="parquet")
    expected = {0: ("0", ["x"]), 1: ("1", []), 10: ("0", ["x"]), 11: ("1", [])}
    assert content(root) == expected


def plain(root: Path) -> None:
    write(
        root / "in.parquet", {"picture": [png_bytes(i) for i in range(3)], "kind": ["a", "b", None]}
    )
    made(root, kind="parquet", path="in.parquet", image="picture", label="kind")
    assert content(root) == {0: ("a", []), 1: ("b", []), 2: ("", [])}


def named_classes(root: Path) -> None:
    """Classes keep the numbers that the column's own names give them."""
    features = {"label": {"names": ["zebra", "ant", "cat", "dog"], "_type": "ClassLabel"}}
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"image": [png_bytes(i) for i in range(4)], "label": [0, 1, 3, -1]})
    pq.write_table(table.replace_schema_metadata(told), root / "in.parquet")
    manifest = made(root, kind="parquet", path="in.parquet")
    assert manifest["class_names"] == ["zebra", "ant", "dog"] and manifest["unlabelled"] == 1
    assert content(root) == {0: ("zebra", []), 1: ("ant", []), 2: ("dog", []), 3: ("", [])}


def deep(root: Path) -> None:
    images = [
        tiff(root / "a.tif", np.full((8, 8), tone, np.float32), 3).read_bytes()
        for tone in (0.5, 200)
    ]
    write(root / "in.parquet", {"image": images})
    made(root, kind="parquet", path="in.parquet")


def zipped(root: Path) -> None:
    with zipfile.ZipFile(root / "in.zip", "w") as archive:
        archive.writestr("a.parquet", b"x")
    made(root, kind="parquet", path="in.zip")


def stored(columns: dict[str, Any], **settings: object) -> Callable[[Path], None]:
    """A file with these columns, read."""

    def run(root: Path) -> None:
        write(root / "in.parquet", columns)
        made(root, kind="parquet", path="in.parquet", **settings)

    return run


def cut(root: Path) -> None:
    write(root / "in.parquet", {"image": [png_bytes()]})
    (root / "in.parquet").write_bytes((root / "in.parquet").read_bytes()[:-9])
    made(root, kind="parquet", path="in.parquet")


def as_folder(root: Path) -> None:
    write(root / "in" / "a.parquet", {"image": [png_bytes()]})
    made(root)


ROWS = (
    Row("hub", "a folder of shards as `datasets` and its hub have them", shards,
        "images, labels, captions"),
    Row("named-classes", "a ClassLabel column", named_classes, "classes by its names, in its order"),
    Row("plain-bytes", "a column of encoded images, columns of any name", plain,
        "images; `dataset.image`, `label`, `text` name the columns"),
    Row("names-only", "a column of file names", stored({"image": ["0.png"]}),
        refused="dataset.path: in.parquet has no column of image bytes (image is string), expected image; "
        "files beside a table are read by dataset.kind=folder"),
    Row("no-column", "another column asked for", stored({"image": [png_bytes()]}, label="kind"),
        refused="dataset.label = kind: expected a column of in.parquet: image"),
    Row("cut", "a file that is not whole", cut,
        refused="dataset.path: in.parquet is not readable as Parquet (Parquet magic bytes not found in footer. "
        "Either the file is corrupted or this is not a parquet file.); fetch it again"),
    Row("deep-in-table", "images of a depth without a range of its own", deep,
        refused="in.parquet: 2 of 2 images are unreadable, such as 0 (float values in a table, of which black and "
        "white are not known; save as 8 or 16 bits)"),
    Row("lists-in-table", "a column of lists of labels", stored({"image": [png_bytes()], "label": [[0, 1]]}),
        refused="dataset.label: label: label [0, 1] is a list, expected one number or name per image; choose "
        "another column, or one of the values"),
    Row("zipped-tables", "a .zip of Parquet files", zipped,
        refused="dataset.path: in.zip is a .zip, expected .parquet files; unpack it"),
    Row("as-folder", "Parquet files with `kind: folder`", as_folder,
        refused="dataset.path: in holds .parquet files; use dataset.kind=parquet"),
)  # fmt: skip
