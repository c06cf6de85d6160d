"""Labels and captions of image folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from tests.inputs.making import content, made, png
from tests.inputs.rows import Row

TITLE = "Labels and captions of image folders"


def described(name: str, text: str | bytes, **settings: object) -> Callable[[Path], None]:
    """A folder of 0.png .. 2.png with this table."""

    def run(root: Path) -> None:
        for number in range(3):
            png(root / "in" / f"{number}.png", number)
        content = text if isinstance(text, bytes) else text.encode()
        (root / "in" / name).write_bytes(content)
        made(root, **settings)

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


def gaps(root: Path) -> None:
    described("metadata.csv", "file_name,label\n0.png,10\n1.png,2\n2.png,NA\n")(root)
    assert content(root) == {0: ("10", []), 1: ("2", []), 2: ("", [])}


def long_numbers(root: Path) -> None:
    described("metadata.csv", f"file_name,label\n0.png,{10**40}\n1.png,2e30\n2.png,9\n")(root)
    assert [content(root)[tone][0] for tone in range(3)] == [str(10**40), str(2 * 10**30), "9"]


def decimal_commas(root: Path) -> None:
    described("metadata.csv", "file_name;label\n0.png;10,0\n1.png;2,0\n2.png;1,0\n")(root)
    assert [content(root)[tone][0] for tone in range(3)] == ["10", "2", "1"]


def utf_16(root: Path) -> None:
    """A table of Excel's "Unicode text", a caption of Notepad."""
    table = "file_name\tlabel\r\n0.png\tcaf\xe9\r\n1.png\tbar\r\n2.png\tbar\r\n"
    described("metadata.csv", table.encode("utf-16"))(root / "table")
    assert content(root / "table")[0] == ("caf\xe9", [])
    for kind in ("utf-16", "utf-8-sig"):
        for number in range(2):
            png(root / kind / "in" / f"{number}.png", number)
            (root / kind / "in" / f"{number}.txt").write_bytes(f"caf\xe9 {number}".encode(kind))
        made(root / kind)
        assert content(root / kind) == {0: ("", ["caf\xe9 0"]), 1: ("", ["caf\xe9 1"])}


def latin_caption(root: Path) -> None:
    png(root / "in" / "0.png")
    (root / "in" / "0.txt").write_bytes(b"caf\xe9")
    made(root)


def at_the_top(root: Path) -> None:
    for tone, name in enumerate(("cat/0.png", "dog/0.png", "2.png")):
        png(root / "in" / name, tone)
    assert made(root, labels="folders")["class_names"] == ["cat", "dog"]
    assert content(root) == {0: ("cat", []), 1: ("dog", []), 2: ("", [])}


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
        "gaps", "numbers with `NA`, `None` or `null` among them", gaps, "these are no label",
        warned="in: 1 images have no label: 2.png",
    ),
    Row("long-numbers", "labels of any number of digits", long_numbers, "classes in the order of numbers"),
    Row("decimal-commas", "`3,0` in a table with semicolons", decimal_commas, "3"),
    Row("utf-16", "tables and captions in UTF-16, as Excel and Notepad write them, or with a byte order mark",
        utf_16, "read"),
    Row("at-the-top", "`dataset.labels: folders`, images at the top", at_the_top, "these have no label"),
    Row(
        "latin-1", "a table in another encoding", described("metadata.csv", b"file_name,label\n0.png,caf\xe9\n"),
        refused="in/metadata.csv: not readable as CSV (byte 25 is not UTF-8; save it as UTF-8)",
    ),
    Row(
        "latin-1-caption", "a caption in another encoding", latin_caption,
        refused="in/0.txt: not readable as text (byte 3 is not UTF-8; save it as UTF-8)",
    ),
    Row(
        "no-row", "a table none of whose rows names an image: no suffix, another place",
        described("metadata.csv", "file_name,label\n0,a\n1,b\n"),
        refused="in: metadata: no row names an image file, the first is 0; expected names such as 0.png",
    ),
    Row(
        "several-labels", "lists of labels", described("metadata.jsonl", '{"file_name": "0.png", "label": [0, 1]}\n'),
        refused="in: metadata: label [0, 1] is a list, expected one number or name per image; choose another "
        "column, or one of the values",
    ),
    Row(
        "infinite-label", "infinity among numbers", described("metadata.csv", "file_name,label\n0.png,inf\n1.png,1\n"),
        refused="in: metadata: label inf is no class, expected whole numbers or names; leave the label of these "
        "images empty",
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
