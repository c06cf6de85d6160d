"""The conditions stage: prompts are encoded once, as the teacher's family does, and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.common.errors import InputError
from models.teachers.loading import open_pipeline
from models.teachers.text_unet import TextUNet
from tasks.config.schema import Params
from tasks.data.conditions import conditions_name, open_table, prompts_of_rows
from tasks.data.shards import ShardSet
from tasks.data.teacher import load_teacher
from tasks.stages import conditions
from tests.models.teachers.pipelines import build
from tests.tasks.prompts import HELD_OUT, PROMPTS, settings

Encode = Callable[..., Any]


def write_teacher(root: Path, kind: str = "prompts", fingerprint: str = "abc") -> None:
    """data/teacher as the teacher stage leaves it."""
    folder = root / "data/teacher"
    build("sd")[0].save_pretrained(folder)
    record = {"condition_kind": kind, "fingerprint": fingerprint}
    (folder / "teacher.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with encoded prompts; not to be changed."""
    root = tmp_path_factory.mktemp("made")
    (root / "in").mkdir()
    write_teacher(root)
    write(root, PROMPTS)
    conditions.run(settings(), root)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with a teacher and prompts."""
    (tmp_path / "in").mkdir()
    write_teacher(tmp_path)
    write(tmp_path, PROMPTS)
    return tmp_path


def write(root: Path, prompts: list[str]) -> None:
    (root / "in/prompts.txt").write_text("\n".join(prompts) + "\n")


def with_conditions(**changes: Any) -> Params:
    return settings(conditions=changes)


def count_encoded(monkeypatch: pytest.MonkeyPatch, stop_after: int = 10**9) -> list[int]:
    """How many prompts each call encodes; the call after so many is interrupted."""
    seen: list[int] = []
    original = TextUNet._encode.__func__  # type: ignore[attr-defined]

    def counted(cls: Any, pipe: Any, prompts: list[str]) -> Any:
        if len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append(len(prompts))
        return original(cls, pipe, prompts)

    monkeypatch.setattr(TextUNet, "_encode", classmethod(counted))
    return seen


def rows(root: Path) -> dict[str, np.ndarray]:
    """The stored embedding of every prompt."""
    table = open_table(root)
    texts = prompts_of_rows(root, range(len(table)))
    states = table[torch.arange(len(table))]["encoder_hidden_states"].numpy()
    return dict(zip(texts, states, strict=True))


def test_rows_are_the_family_s_encoding_in_half_precision(made: Path) -> None:
    found, pipe = rows(made), open_pipeline(made / "data/teacher")
    assert sorted(found) == sorted(PROMPTS)
    expected = TextUNet.encode_prompts(pipe, list(found))["encoder_hidden_states"]
    for row, wanted in zip(found.values(), expected.numpy(), strict=True):
        assert row.dtype == np.float16
        np.testing.assert_allclose(row, wanted, atol=2e-3)
    table = open_table(made)
    assert (len(table), table.training) == (len(PROMPTS), len(PROMPTS) - HELD_OUT)
    null = table.nulls(2)["encoder_hidden_states"]
    empty = TextUNet.encode_null(pipe)
    assert empty is not None and null.shape == (2, 77, 32)
    np.testing.assert_allclose(null[1], empty["encoder_hidden_states"][0], atol=2e-3)


def test_the_manifest_says_where_the_embeddings_come_from(made: Path) -> None:
    meta = ShardSet(made / "data/conditions", full=True).meta
    assert meta["counts"] == {
        "read": 9, "empty": 0, "repeated": 0, "distinct": 9, "used": 9, "truncated": 0,
    }  # fmt: skip
    assert meta["encoders"].keys() == {"text_encoder", "tokenizer"}
    assert meta["encoders"]["text_encoder"]["class"] == "CLIPTextModel"
    assert meta["name"] == conditions_name(made) and len(meta["name"]) == 64
    assert str(made) not in json.dumps(meta["encoders"])


def test_labels_are_rows_of_training_and_held_out_ones(made: Path) -> None:
    teacher = load_teacher(made)
    train, held = teacher.labels_of("train"), teacher.labels_of("validation")
    assert [*train, *held] == list(range(9)) and len(held) == HELD_OUT
    given = teacher.default_condition(8, 3)
    assert given is not None
    expected = open_table(made)[torch.tensor([3, 4, 5, 0, 1, 2, 3, 4])]
    torch.testing.assert_close(dict(given.items()), dict(expected.items()))


def test_bytes_do_not_depend_on_shards(made: Path, root: Path) -> None:
    conditions.run(with_conditions(shard_size=2), root)
    other, expected = rows(root), rows(made)
    assert list(other) == list(expected) and conditions_name(root) == conditions_name(made)
    # batches begin with every shard: the same prompts beside others, at the same batch size
    for text, row in other.items():
        np.testing.assert_allclose(row, expected[text], atol=2e-3)


def test_an_interrupted_run_goes_on_from_its_shards(
    root: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = with_conditions(shard_size=4)
    with monkeypatch.context() as patch:
        seen = count_encoded(patch, stop_after=2)
        with pytest.raises(KeyboardInterrupt):
            conditions.run(params, root)
        assert seen == [4, 4] and not (root / "data/conditions").exists()
    seen = count_encoded(monkeypatch)
    conditions.run(params, root)
    assert seen == [4, 1]  # the last shard, filled up to a batch, and the null condition
    expected = rows(made)
    assert all(np.array_equal(row, expected[text]) for text, row in rows(root).items())
    conditions.run(params, root)
    assert seen == [4, 1, 1]


def test_what_names_the_table(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts and encoders do; the network behind them does not, and encodes nothing again."""
    conditions.run(settings(), root)
    first, seen = conditions_name(root), count_encoded(monkeypatch)
    write_teacher(root, fingerprint="another network")
    with pytest.raises(InputError, match="data/conditions was made for another teacher"):
        load_teacher(root)
    conditions.run(settings(), root)
    assert conditions_name(root) == first and seen == [1]
    load_teacher(root)
    names = {first}
    for change in ({"negative_prompt": "blurry"}, {"dtype": "float32"}, {"seed": 1}):
        conditions.run(with_conditions(**change), root)
        names.add(conditions_name(root))
    write(root, [*PROMPTS, "one more"])
    conditions.run(settings(), root)
    assert len(names | {conditions_name(root)}) == 5


def test_a_negative_prompt_is_what_guidance_leads_away_from(root: Path) -> None:
    conditions.run(with_conditions(negative_prompt="blurry", dtype="float32"), root)
    pipe = open_pipeline(root / "data/teacher")
    expected = TextUNet.encode_prompts(pipe, ["blurry"])["encoder_hidden_states"]
    torch.testing.assert_close(open_table(root).nulls(1)["encoder_hidden_states"], expected)


def test_too_long_prompts(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(root, [*PROMPTS, "x" * 76, "y" * 75])
    line = (
        r"1 of 11 prompts are longer than the 77 \(tokenizer\) tokens that the encoders read, "
        r"such as 'x{60}'; shorten them, or set conditions.too_long=truncate"
    )
    with pytest.raises(InputError, match=line):
        conditions.run(settings(), root)
    conditions.run(with_conditions(too_long="truncate"), root)
    assert "1 of 11 prompts are truncated to 77 (tokenizer) tokens" in caplog.text
    assert ShardSet(root / "data/conditions").meta["counts"]["truncated"] == 1


def test_no_room_on_the_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 20_000})
    monkeypatch.setattr(conditions.shutil, "disk_usage", lambda path: usage)
    line = r"9 prompts take 0\.0 GB as float16, 0\.0 GB are free; set conditions\.limit"
    with pytest.raises(InputError, match=line):
        conditions.run(settings(), root)


def test_embeddings_beyond_half_precision(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TextUNet._encode.__func__  # type: ignore[attr-defined]

    def large(cls: Any, pipe: Any, prompts: list[str]) -> Any:
        return {k: 1e5 * v for k, v in original(cls, pipe, prompts).items()}

    monkeypatch.setattr(TextUNet, "_encode", classmethod(large))
    with pytest.raises(InputError, match=r"dtype = float16: encoder_hidden_states reaches .*; use"):
        conditions.run(settings(), root)


@pytest.mark.parametrize("kind", ["none", "classes"])
def test_teachers_without_prompts_get_an_empty_manifest(
    root: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_teacher(root, kind)
    (root / "data/teacher/model_index.json").unlink()  # it is not even opened
    conditions.run(with_conditions(prompts=None), root)
    shards = ShardSet(root / "data/conditions")
    assert shards.splits == () and shards.meta == {"kind": kind}
    assert conditions_name(root) is None
    with pytest.raises(
        InputError, match=rf"takes {'no' if kind == 'none' else 'classes, no'} prom"
    ):
        conditions.run(settings(), root)


def test_mistakes_are_one_line(root: Path) -> None:
    with pytest.raises(InputError, match=r"conditions.prompts = null: expected a \.txt"):
        conditions.run(with_conditions(prompts=None), root)
    (root / "data/teacher/teacher.json").write_text("{}")
    with pytest.raises(InputError, match="of an earlier version; run python -m tasks.stages.teac"):
        conditions.run(settings(), root)


def test_a_changed_list_of_prompts_is_noticed(root: Path) -> None:
    conditions.run(settings(), root)
    file = root / "data/conditions/prompts.jsonl"
    text = file.read_text()
    file.unlink()
    file.write_text(text.replace("cat", "fox"))
    with pytest.raises(InputError, match=r"prompts\.jsonl: its checksum differs"):
        prompts_of_rows(root, [0])


def test_rows_that_are_not_there_are_refused(made: Path) -> None:
    with pytest.raises(InputError, match="rows 0 to 9 asked for, the table has 0 to 8"):
        open_table(made)[torch.tensor([0, 9])]
