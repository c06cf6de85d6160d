"""Parquet files with images inside, as `datasets` writes them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.common.errors import InputError
from tasks.data.images import UnreadableImage
from tasks.data.sources.base import Source
from tasks.data.sources.parquet import ParquetDataset


def png(tone: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), tone, np.uint8)).save(content, "png")
    return content.getvalue()


def write(path: Path, columns: dict[str, Any], names: list[str] | None = None) -> None:
    table = pa.table(columns)
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    pq.write_table(table, path, row_group_size=2)


def opened(path: Path, **settings: object) -> Source:
    return ParquetDataset.model_validate({"path": str(path)} | settings).open(path)


def test_a_data_set_of_the_hub(tmp_path: Path) -> None:
    """Shards in order, class names of the schema, random access over row groups."""
    for shard in range(2):
        tones = [100 * shard + i for i in range(5)]
        images = [{"bytes": png(t), "path": f"{t}.png"} for t in tones]
        columns = {"image": images, "label": [0, 1, -1, None, 1], "text": ["x", None, "", "y", "z"]}
        write(tmp_path / f"train-0000{shard}-of-00002.parquet", columns, ["cat", "ant"])
    source = opened(tmp_path)
    order = np.random.default_rng(0).permutation(10)
    found = {int(i): int(source.read(int(i))[0, 0, 0]) for i in order}
    assert found == {i: i if i < 5 else 95 + i for i in range(10)}
    assert source.class_names == ("cat", "ant")  # numbers are those of the column
    assert source.labels.tolist() == [0, 1, -1, -1, 1] * 2
    assert source.captions == [["x"], [], [], ["y"], ["z"]] * 2


def test_plain_bytes_and_named_columns(tmp_path: Path) -> None:
    write(
        tmp_path / "a.parquet",
        {"picture": [png(1), png(2), b""], "kind": [2.0, 10.0, float("nan")]},
    )
    source = opened(tmp_path / "a.parquet", image="picture", label="kind", channels=1)
    assert source.read(1).shape == (4, 4, 1) and source.captions is None
    assert source.class_names == ("2", "10") and source.labels.tolist() == [0, 1, -1]
    with pytest.raises(UnreadableImage, match="no bytes in this row"):
        source.read(2)


def test_what_is_not_taken(tmp_path: Path) -> None:
    write(tmp_path / "names.parquet", {"image": ["a.png"]})
    write(tmp_path / "none.parquet", {"id": [1]})
    write(tmp_path / "empty.parquet", {"image": pa.array([], pa.binary())})
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "none.parquet").read_bytes()[:-9])
    (tmp_path / "folder").mkdir()
    (tmp_path / "mixed").mkdir()
    write(tmp_path / "mixed/a.parquet", {"image": [png(1)], "label": [1]})
    write(tmp_path / "mixed/b.parquet", {"image": [png(1)]})
    for name, settings, message in (
        (
            "names.parquet",
            {},
            r"no column of image bytes \(image is string\), expected image; files",
        ),
        ("none.parquet", {}, r"no column of image bytes \(id\), expected image"),
        ("none.parquet", {"label": "x"}, r"dataset\.label = x: expected a column of .*: id"),
        ("empty.parquet", {}, "has no rows"),
        ("cut.parquet", {}, "not readable as Parquet"),
        ("folder", {}, "no .parquet files in"),
        ("absent", {}, "is not a folder, expected a .parquet file or a folder of them"),
        ("mixed", {}, "b.parquet has no column label, as the files before have"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            opened(tmp_path / name, **settings)
        assert "\n" not in str(caught.value)
