"""Captioned emoji: the file, the split, and packs drawn into a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.common.errors import InputError
from scripts.emoji import pack
from scripts.emoji.data import (
    KNOWN_CAPTIONS,
    held_out,
    learnt,
    load_emoji,
    of_captions,
    read_captions,
)
from tests.scripts.emoji.samples import CAPTIONS, write_emoji


def test_the_file_is_read_by_style_words(tmp_path: Path) -> None:
    emoji = load_emoji(write_emoji(tmp_path / "e.npz"))
    assert emoji.images.shape == (4 * len(CAPTIONS), 3, 64, 64)
    assert emoji.prompts[2] == "red heart, fluent style"
    red = emoji.images[0, :, 32, 32].tolist()
    assert red == [220, 20, 20]  # channels first, not mixed up


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ({"images": np.zeros((2, 64, 64, 3), np.uint8)}, "captions"),
        ({"images": np.zeros((2, 32, 32, 3), np.uint8)}, "uint8 (n, 64, 64, 3)"),
        ({"vendor": np.array(["noto"])}, "1 vendors"),
        ({"vendor": np.array(["other", "other"])}, "vendors ['other']"),
    ],
)
def test_another_file_is_one_line(tmp_path: Path, arrays: dict, what: str) -> None:
    whole = {
        "images": np.zeros((2, 64, 64, 3), np.uint8),
        "captions": np.array(["red apple", "tomato"]),
        "vendor": np.array(["noto", "noto"]),
    }
    if what == "captions":
        del whole["captions"]
    np.savez(tmp_path / "x.npz", **(whole | arrays))
    with pytest.raises(InputError) as error:
        load_emoji(tmp_path / "x.npz")
    assert what in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="scripts.emoji.pack"):
        load_emoji(tmp_path / "no.npz")


def test_the_teachers_captions_are_known_to_the_judge() -> None:
    taught, known = read_captions(), read_captions(KNOWN_CAPTIONS)
    assert len(set(taught)) == len(taught) > 50
    assert len(set(known)) == len(known) > 200
    assert set(taught) <= set(known)


def test_held_out_pairs_do_not_depend_on_other_captions(tmp_path: Path) -> None:
    emoji = load_emoji(write_emoji(tmp_path / "e.npz"))
    mask = held_out(emoji, 0.9)
    assert 0 < int(mask.sum()) <= len(CAPTIONS)
    chosen = of_captions(emoji, ["red heart", "doughnut"])
    pairs = set(emoji[mask].prompts)
    assert set(chosen[held_out(chosen, 0.9)].prompts) == pairs & set(chosen.prompts)


def test_learnt_and_held_out_emoji_are_apart(tmp_path: Path) -> None:
    train, test = learnt(load_emoji(write_emoji(tmp_path / "e.npz")))
    assert len(train) + len(test) == 4 * len(CAPTIONS)
    assert test.prompts == ["yellow heart, twemoji style", "doughnut, fluent style"]
    assert not set(train.prompts) & set(test.prompts)


def test_captions_that_nobody_draws_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none is wanted"):
        of_captions(load_emoji(write_emoji(tmp_path / "e.npz")), ["zeppelin"])


def test_packs_become_a_file(tmp_path: Path) -> None:
    body = '<rect width="16" height="16" fill="#ff0000"/>'
    icons = {
        "prefix": "noto",
        "icons": {"red-apple": {"body": body}, "thumb-skin-tone-1": {"body": body}},
        "categories": {"Food": ["red-apple"]},
    }
    (tmp_path / "noto.json").write_text(json.dumps(icons))
    pack.main([str(tmp_path / "noto.json"), "--out", str(tmp_path / "out.npz")])
    emoji = load_emoji(tmp_path / "out.npz")
    assert emoji.prompts == ["red apple, noto style"]
    assert torch.equal(emoji.images[0, :, 5, 5], torch.tensor([255, 0, 0], dtype=torch.uint8))
