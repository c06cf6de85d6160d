"""Prompts of text-to-image teachers, in files of every kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.config.conditions import Conditions
from tasks.data.conditions import PromptFile
from tasks.data.prompts import collect, open_prompts
from tests.inputs.making import made, png
from tests.inputs.rows import Row

TITLE = "Prompts (`conditions.prompts`)"


def collected(root: Path, name: str, **settings: Any) -> list[str]:
    """The prompts that are used of root/name, in the order of the alphabet."""
    section = Conditions.model_validate({"prompts": name, "holdout": 1} | settings)
    found = collect(open_prompts(section, root), section, root)
    assert (found.train, found.holdout) == (found.counts["used"] - found.holdout, section.holdout)
    prompts = PromptFile(found.file)
    return sorted(prompts[range(len(prompts))])


def text(
    name: str,
    content: str,
    expected: list[str] | None = None,
    encoding: str = "utf-8",
    named: str = "utf-8",
    **more: Any,
) -> Callable[[Path], None]:
    """A text file of an encoding, read with the one that is ``named``."""

    def run(root: Path) -> None:
        (root / name).write_bytes(content.encode(encoding))
        assert collected(root, name, encoding=named, **more) == expected

    return run


def parquet(root: Path) -> None:
    (root / "in").mkdir()
    for shard in range(2):
        captions = [f"cat {shard}", ["a", "b"][shard]]
        pq.write_table(pa.table({"id": [1, 2], "caption": captions}), root / f"in/{shard}.parquet")
    assert collected(root, "in") == ["a", "b", "cat 0", "cat 1"]


def saved(root: Path, name: str = "in", **state: Any) -> None:
    """As `Dataset.save_to_disk` writes it."""
    table = pa.table({"text": ["a cat", "a dog"]})
    (root / name).mkdir(parents=True)
    place = str(root / name / "data-00000-of-00001.arrow")
    with pa.OSFile(place, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    content = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]} | state
    (root / name / "state.json").write_text(json.dumps(content))


def dataset(root: Path) -> None:
    saved(root)
    assert collected(root, "in") == ["a cat", "a dog"]


def splits(root: Path) -> None:
    for name in ("train", "test"):
        saved(root, f"in/{name}")
    (root / "in/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    collected(root, "in")


def images(root: Path) -> None:
    for index in range(3):
        png(root / "in" / f"{index}.png", index)
        (root / "in" / f"{index}.txt").write_text(f"cat {index}")
    assert collected(root, "in") == ["cat 0", "cat 1", "cat 2"]


def bare(root: Path) -> None:
    png(root / "in" / "0.png")
    collected(root, "in")


def captions(root: Path) -> None:
    for index in range(8):
        png(root / "in" / f"{index}.png", index)
        (root / "in" / f"{index}.txt").write_text(f"cat {index // 2}")
    made(root, holdout=2)
    section = Conditions(prompts="dataset")
    found = collect(open_prompts(section, root), section, root)
    assert found.counts["read"] == 8 and found.counts["distinct"] == 4
    assert found.train + found.holdout == 4 and found.train >= 3


def listed(*lines: str, **settings: Any) -> Callable[[Path], None]:
    return text("in.txt", "\n".join(lines), **settings)


def limited(root: Path) -> None:
    (root / "in.txt").write_text("\n".join(f"cat {index}" for index in range(50)))
    assert len(collected(root, "in.txt", limit=3)) == 3


ROWS = (
    Row("txt", ".txt, one a line", listed("a cat", "a dog", expected=["a cat", "a dog"]),
        "prompts; UTF-8, or what a byte-order mark or `conditions.encoding` says"),
    Row("txt-16", "a .txt of UTF-16, with lines of Windows",
        text("in.txt", "\ufeffein Bär\r\nzwei\r\n", ["ein Bär", "zwei"], "utf-16-le"), "prompts"),
    Row("latin", "a .txt of Latin-1", text("in.txt", "ein Bär\nzwei", encoding="latin-1"),
        refused="conditions.prompts: in.txt, line 1: not utf-8 (byte 0xe4); save it as UTF-8, or name its "
        "encoding in conditions.encoding, such as latin-1"),
    Row("latin-named", "the same with `encoding: latin-1`",
        text("in.txt", "ein Bär\nzwei", ["ein Bär", "zwei"], "latin-1", named="latin-1"), "prompts"),
    Row("empty-lines", "empty lines", listed("a", "", " ", "b", expected=["a", "b"]),
        "left out; `conditions.empty: refuse` refuses them", warned="left out: 2 of 4 prompts are empty: line 2, line 3"),
    Row("empty-refused", "the same with `empty: refuse`", listed("a", "", "b", empty="refuse"),
        refused="conditions.prompts: in.txt: 1 of 3 prompts are empty: line 2; remove them, or set "
        "conditions.empty=skip"),
    Row("repeated", "a prompt twice", listed("a", "b", "a", expected=["a", "b"]), "encoded once",
        warned="in.txt: 1 of 3 prompts repeat others and are encoded once"),
    Row("limit", "more than `conditions.limit`", limited, "so many at random",
        warned="in.txt: 3 of 50 distinct prompts are used (conditions.limit), chosen at random"),
    Row("few", "no more than `conditions.holdout`", listed("a", "b", holdout=2),
        refused="conditions.holdout = 2: expected fewer than the 2 distinct prompts of in.txt"),
    Row("no-prompts", "an empty file", listed(""),
        refused="conditions.prompts: in.txt is empty; expected a .txt, .csv, .tsv, .jsonl or .parquet, a folder "
        "of captioned images, of .parquet files or of Dataset.save_to_disk"),
    Row("csv", ".csv or .tsv with a column text, caption, captions or prompt",
        text("in.csv", 'id;prompt\n1;"a; b"\n2;"two\nlines"\n', ["a; b", "two\nlines"]),
        "prompts; `conditions.column` names another"),
    Row("csv-column", "other columns", text("in.csv", "id,what\n1,a cat\n"),
        refused="conditions.prompts: in.csv has the columns id, what, expected text, caption, captions, prompt, "
        "prompts; name yours in conditions.column"),
    Row("csv-short", "a line with fewer columns", text("in.csv", "id,text\n1,a\n2\n"),
        refused="conditions.prompts: in.csv, line 3: 1 columns, expected 2"),
    Row("csv-quote", "a quotation mark that is not closed", text("in.csv", 'text\n"a\nb\n'),
        refused='conditions.prompts: in.csv, line 2: not readable as CSV (unexpected end of data); put texts with '
        'separators or quotes between " "'),
    Row("jsonl", ".jsonl of objects, of texts, with several captions each",
        text("in.jsonl", '{"text": ["a", "b"]}\n"c"\n{"text": "d", "x": 1}\n', ["a", "b", "c", "d"]), "prompts"),
    Row("jsonl-number", "a number in the place of a prompt", text("in.jsonl", '{"text": "a"}\n{"text": 7}\n'),
        refused="conditions.prompts: in.jsonl, line 2: '7' is no text, expected a prompt; choose another column in "
        "conditions.column"),
    Row("jsonl-broken", "a line that is no JSON", text("in.jsonl", '{"text": "a"}\n{"text": \n'),
        refused="conditions.prompts: in.jsonl, line 2: not JSON (Expecting value: line 2 column 1 (char 10)); "
        "expected one object per line"),
    Row("prompt-parquet", "a .parquet, a folder of them", parquet, "prompts, read a batch of rows at a time"),
    Row("saved-dataset", "a folder of `Dataset.save_to_disk`", dataset, "prompts; the library is not needed"),
    Row("saved-splits", "a folder of a `DatasetDict`", splits,
        refused="conditions.prompts: in holds the splits test, train, expected one; give in/test"),
    Row("captioned", "a folder of images with captions", images, "the captions"),
    Row("uncaptioned", "a folder of images without", bare,
        refused="conditions.prompts: in has 1 images without captions, expected metadata.csv, .jsonl or .parquet "
        "with file_name and text, or a .txt beside each image"),
    Row("of-dataset", "`prompts: dataset`", captions,
        "the captions of the dataset; those of held-out images, as far as they are new, are held out",
        warned="data/dataset: 4 of 8 prompts repeat others and are encoded once"),
    Row("prompt-kind", "another kind of file", text("in.docx", "x"),
        refused="conditions.prompts: in.docx is a .docx; expected a .txt, .csv, .tsv, .jsonl or .parquet, a folder "
        "of captioned images, of .parquet files or of Dataset.save_to_disk"),
)  # fmt: skip
