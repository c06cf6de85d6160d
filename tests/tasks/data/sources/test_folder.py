"""Folders and archives as people have them: links, hidden files, class folders, tables, captions."""

from __future__ import annotations

import json
import os
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from models.common.errors import InputError
from tasks.config.schema import Params
from tasks.data.dataset import load_captions, load_manifest, load_split
from tasks.data.images import UnreadableImage
from tasks.data.sources.folder import FolderDataset, folder_source
from tasks.stages.dataset import run


def image(path: Path, tone: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), tone % 256, np.uint8)).save(path)
    return path


def tones(folder: Path, **settings: object) -> dict[str, int]:
    source = folder_source(folder, 3, **settings)  # type: ignore[arg-type]
    return {name: int(source.read(i)[0, 0, 0]) for i, name in enumerate(source.names)}


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    top = tmp_path / "top"
    for number in range(3):
        image(top / "own" / f"{number}.png", number)
        image(tmp_path / "disk2" / "deep" / f"{number}.png", 100 + number)
    (top / "more").symlink_to(tmp_path / "disk2")
    (top / "again").symlink_to(top / "own")  # there already
    (tmp_path / "disk2" / "deep" / "up").symlink_to(tmp_path / "disk2")  # a circle
    (top / "own" / "self").symlink_to(top)
    assert tones(top) == {f"more/deep/{n}.png": 100 + n for n in range(3)} | {
        f"own/{n}.png": n for n in range(3)
    }


def test_a_linked_image_and_a_broken_link(tmp_path: Path) -> None:
    image(tmp_path / "elsewhere.png", 7)
    top = tmp_path / "top"
    image(top / "a.png", 1)
    (top / "b.png").symlink_to(tmp_path / "elsewhere.png")
    (top / "c.png").symlink_to(tmp_path / "gone.png")
    source = folder_source(top, 3)
    assert list(source.names) == ["a.png", "b.png", "c.png"] and source.read(1)[0, 0, 0] == 7
    with pytest.raises(UnreadableImage, match="a link to a file that is not there"):
        source.read(2)


def test_what_hides_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        image(tmp_path / f"{number}.png", number)
        image(tmp_path / ".ipynb_checkpoints" / f"{number}-checkpoint.png", number)
    (tmp_path / "__MACOSX").mkdir()
    for name in ("._0.png", "__MACOSX/1.png", ".DS_Store"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    image(tmp_path / "@eaDir" / "0.png" / "SYNOPHOTO_THUMB_M.jpg")
    assert tones(tmp_path) == {f"{number}.png": number for number in range(4)}
    assert "left out 7 hidden files: ._0.png, .ipynb_checkpoints/0-checkpoint.png" in caplog.text
    hidden_above = tmp_path / ".cache" / "set"  # only what lies below the folder counts
    image(hidden_above / "a.png")
    assert list(folder_source(hidden_above, 3).names) == ["a.png"]


def test_a_zip_from_a_mac(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for number in range(5):
            archive.write(image(tmp_path / "x.png", number), f"set/{number}.png")
            archive.writestr(f"__MACOSX/set/._{number}.png", b"\0\5\x16\7")
        archive.writestr("set/metadata.csv", "file_name,text\n0.png,zero\n4.png,four\n")
        archive.writestr("set\\5.png", (tmp_path / "x.png").read_bytes())  # packed on Windows
    assert tones(tmp_path / "set.zip") == {f"set/{n}.png": n for n in range(5)} | {"set/5.png": 4}
    captions = folder_source(tmp_path / "set.zip", 3).captions
    assert captions == [["zero"], [], [], [], ["four"], []]
    run(settings(path="set.zip", holdout=2), tmp_path)
    assert load_manifest(tmp_path)["counts"] == {"train": 4, "holdout": 2}


def test_damaged_archives(tmp_path: Path) -> None:
    (tmp_path / "bad.zip").write_bytes(b"PK\3\4 nothing")
    with pytest.raises(InputError, match=r"dataset\.path: .*bad\.zip is not readable as \.zip"):
        folder_source(tmp_path / "bad.zip", 3)
    with zipfile.ZipFile(tmp_path / "cut.zip", "w") as archive:
        archive.write(image(tmp_path / "x.png"), "x.png")
    content = bytearray((tmp_path / "cut.zip").read_bytes())
    content[60] ^= 255
    (tmp_path / "cut.zip").write_bytes(content)
    with pytest.raises(UnreadableImage, match="CRC"):
        folder_source(tmp_path / "cut.zip", 3).read(0)
    with pytest.raises(InputError, match=r"is not a folder, expected a folder of images or a .zip"):
        folder_source(tmp_path / "x.png", 3)


def settings(**dataset: object) -> Params:
    return Params.model_validate({"dataset": {"kind": "folder", "size": 8, "holdout": 1} | dataset})


def classes(folder: Path, **changes: object) -> tuple[dict[str, int], tuple[str, ...]]:
    source = FolderDataset.model_validate({"kind": "folder", "path": str(folder)} | changes).open(
        folder
    )
    return dict(zip(source.names, source.labels.tolist(), strict=True)), source.class_names


def test_a_folder_per_class(tmp_path: Path) -> None:
    for label in ("10", "9"):
        image(tmp_path / label / "a.png")
    assert classes(tmp_path) == ({"10/a.png": 1, "9/a.png": 0}, ("9", "10"))
    assert classes(tmp_path, labels="none") == ({"10/a.png": -1, "9/a.png": -1}, ())


def test_folders_that_are_no_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "test"):
        image(tmp_path / "splits" / split / "a.png")
        for label in ("cat", "dog"):
            image(tmp_path / "both" / split / label / "a.png")
    assert classes(tmp_path / "splits")[1] == ()
    assert classes(tmp_path / "both")[1] == ("cat", "dog")
    image(tmp_path / "one" / "cat" / "a.png")
    assert classes(tmp_path / "one")[1] == ()
    image(tmp_path / "both" / "train" / "b.png")  # not in a class
    assert classes(tmp_path / "both")[1] == ()
    assert "images lie at several levels, so folders are no classes" in caplog.text
    found, names = classes(tmp_path / "both", labels="folders")
    assert names == ("cat", "dog", "train") and found["train/b.png"] == 2


TABLE = {"file_name": ["a.png", "sub/b.png", "c.png"], "label": [2.0, 10.0, None],
         "text": ["a cat", "", None]}  # fmt: skip


def write_table(folder: Path, kind: str, table: dict[str, list]) -> None:
    frame = pd.DataFrame(table)
    if kind == "csv":
        frame.to_csv(folder / "metadata.csv", index=False)
    elif kind == "jsonl":
        frame.to_json(folder / "metadata.jsonl", orient="records", lines=True)
    else:
        frame.to_parquet(folder / "metadata.parquet", index=False)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("columns", [("file_name", "label", "text"), ("image", "Class", "caption")])
def test_tables_of_every_kind_agree(tmp_path: Path, kind: str, columns: tuple[str, ...]) -> None:
    for name in TABLE["file_name"]:
        image(tmp_path / name)
    write_table(tmp_path, kind, dict(zip(columns, TABLE.values(), strict=True)))
    source = folder_source(tmp_path, 3)
    assert list(source.names) == ["a.png", "c.png", "sub/b.png"]
    assert source.class_names == ("2", "10") and source.labels.tolist() == [0, -1, 1]
    assert source.captions == [["a cat"], [], []]


def test_tables_below_count_from_their_own_folder(tmp_path: Path) -> None:
    for label in ("x", "y"):
        image(tmp_path / label / "a.png")
        write_table(tmp_path / label, "csv", {"file_name": ["./a.png"], "label": [label.upper()]})
    assert classes(tmp_path) == ({"x/a.png": 0, "y/a.png": 1}, ("X", "Y"))


def test_names_match_whatever_wrote_them(tmp_path: Path) -> None:
    """Accents in one code point or two, backslashes, semicolons, a byte order mark."""
    image(tmp_path / unicodedata.normalize("NFD", "é.png"))
    image(tmp_path / "sub" / "b.png")
    text = unicodedata.normalize("NFC", "file_name;label\r\né.png;1\r\nsub\\b.png;0\r\n")
    (tmp_path / "metadata.csv").write_bytes(text.encode("utf-8-sig"))
    assert sorted(classes(tmp_path)[0].values()) == [0, 1]


def test_several_captions_and_caption_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "abc":
        image(tmp_path / f"{name}.png", ord(name))
    (tmp_path / "c.txt").write_text("beside it\n")
    (tmp_path / "readme.txt").write_text("no caption")
    rows = [{"image": "a.png", "text": "one"}, {"image": "a.png", "text": "two"},
            {"image": "b.png", "text": ["three", "four"]}]  # fmt: skip
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(settings(path=str(tmp_path)), tmp_path)
    found = {}
    for split in ("train", "holdout"):
        captions = load_captions(tmp_path, split)
        assert captions is not None
        images = load_split(tmp_path, split)[0]
        found |= {chr(int(im[0, 0, 0])): text for im, text in zip(images, captions, strict=True)}
    assert found == {"a": ["one", "two"], "b": ["three", "four"], "c": ["beside it"]}
    assert "left out 1 files without an image suffix that Pillow reads (1 .txt)" in caplog.text
    assert load_manifest(tmp_path)["captions"] is True
    file = tmp_path / "data/dataset/train_captions.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(InputError, match=r"train_captions\.json: its checksum differs"):
        load_captions(tmp_path, "train")


def test_a_dataset_without_captions_has_none(tmp_path: Path) -> None:
    for number in range(3):
        image(tmp_path / f"{number}.png", number)
    run(settings(path=str(tmp_path)), tmp_path)
    assert load_captions(tmp_path, "train") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(InputError, match=r"closed cannot be read \(Permission denied\)"):
        folder_source(tmp_path, 3)


def test_what_is_there_instead_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(InputError, match=r"no images in .*, only \.heic; expected files such as"):
        folder_source(tmp_path, 3)
    (tmp_path / "b.parquet").write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds \.parquet files; use dataset\.kind=parquet"):
        folder_source(tmp_path, 3)
