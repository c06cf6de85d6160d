"""Labels and captions of image folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from tests.inputs.making import content, made, png
from tests.inputs.rows import Row

TITLE = "Labels and captions of image folders"


def described(name: str, text: str) -> Callable[[Path], None]:
    """A folder of 0.png .. 2.png with this table."""

    def run(root: Path) -> None:
        for number in range(3):
            png(root / "in" / f"{number}.png", number)
        (root / "in" / name).write_text(text)
        made(root)

    return run


def class_folders(root: Path) -> None:
    for tone, label in enumerate(("cat", "dog")):
        png(root / "in" / label / "0.png", tone)
    made(root)
    assert content(root) == {0: ("cat", []), 1: ("dog", [])}


def split_folders(root: Path) -> None:
    for tone, label in enumerate(("train", "test")):
        png(root / "in" / label / "0.png", tone)
    made(root)
    assert content(root) == {0: ("", []), 1: ("", [])}


def levels(root: Path) -> None:
    for tone, name in enumerate(("cat/0.png", "dog/0.png", "1.png")):
        png(root / "in" / name, tone)
    made(root)
    assert content(root)[0] == ("", [])


def tables(root: Path) -> None:
    rows = [{"file_name": "0.png", "label": "cat", "text": "a cat"},
            {"file_name": "1.png", "label": "dog", "text": None}]  # fmt: skip
    for kind in ("csv", "jsonl", "parquet"):
        for number in range(2):
            png(root / kind / "in" / f"{number}.png", number)
        frame, place = pd.DataFrame(rows), root / kind / "in" / f"metadata.{kind}"
        if kind == "csv":
            frame.to_csv(place, index=False)
        elif kind == "jsonl":
            place.write_text("\n".join(map(json.dumps, rows)))
        else:
            frame.to_parquet(place)
        made(root / kind)
        assert content(root / kind) == {0: ("cat", ["a cat"]), 1: ("dog", [])}


def image_text(root: Path) -> None:
    described("metadata.csv", "image,text\n0.png,zero\n1.png,one\n")(root)
    assert content(root) == {0: ("", ["zero"]), 1: ("", ["one"]), 2: ("", [])}


def beside(root: Path) -> None:
    for number in range(2):
        png(root / "in" / f"{number}.png", number)
        (root / "in" / f"{number}.txt").write_text(f"image {number}\n")
    made(root)
    assert content(root) == {0: ("", ["image 0"]), 1: ("", ["image 1"])}


def floats(root: Path) -> None:
    for number in range(13):
        png(root / "in" / f"{number}.png", number)
    lines = "".join(f"{i}.png,{float(i)}\n" for i in range(11))
    (root / "in/metadata.csv").write_text(f"file_name,label\n{lines}11.png,\n12.png,-1\n")
    assert made(root)["class_names"] == [str(i) for i in range(11)]
    assert content(root)[10][0] == "10" and content(root)[11][0] == content(root)[12][0] == ""


def missing(root: Path) -> None:
    described("metadata.csv", "file_name,label\n0.png,a\n1.png,b\n2.png,\nx.png,a\n")(root)
    assert content(root)[2] == ("", [])


ROWS = (
    Row("class-folders", "a folder per class", class_folders, "its name is the class"),
    Row("split-folders", "folders `train`, `test`, `val`, ...", split_folders, "no classes"),
    Row(
        "levels", "images at several levels", levels, "no classes",
        warned="in: images lie at several levels, so folders are no classes; dataset.labels=folders "
        "takes the last folder's name",
    ),
    Row(
        "metadata", "`metadata.csv`, `.jsonl` or `.parquet` with `file_name`, `label`, `text`", tables,
        "labels and captions; captions are kept in `data/dataset/*_captions.json`",
    ),
    Row("image-text", "the columns `image,text`", image_text, "captions"),
    Row("beside", "`0.txt` beside `0.png`", beside, "captions"),
    Row(
        "float-labels", "labels `0.0` to `10.0`, empty, -1, NaN", floats,
        "classes 0 to 10 in the order of numbers; the others are no label",
        warned="in: 2 images have no label: 11.png, 12.png",
    ),
    Row(
        "rows-and-images", "rows without an image, images without a row", missing, "named in a warning",
        warned="in: metadata: 1 rows name no image file: x.png",
    ),
    Row(
        "fractions", "labels with a fraction", described("metadata.csv", "file_name,label\n0.png,0.5\n1.png,1\n"),
        refused="in: metadata: label 0.5 has a fraction, expected whole numbers or names; choose another column, "
        "or round the numbers",
    ),
    Row(
        "two-labels", "two labels for one image",
        described("metadata.jsonl", '{"file_name": "0.png", "label": 1}\n{"file_name": "0.png", "label": 2}\n'),
        refused="in/metadata.jsonl: 0.png has two labels, expected one row per image",
    ),
    Row(
        "columns", "other columns", described("metadata.csv", "path,score\n0.png,1\n"),
        refused="in/metadata.csv: columns path, score, expected file_name and label or text",
    ),
    Row(
        "json", "a table that is damaged", described("metadata.jsonl", "[1, 2]\n"),
        refused="in/metadata.jsonl: not readable as JSON lines (expected one object per line)",
    ),
)  # fmt: skip
