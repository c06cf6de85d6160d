"""The tokenizer is CLIP's kind, survives saving, and can write any text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from scripts.emoji.text import LENGTH, build_text_encoder, save_tokenizer, tokens, train_tokenizer

TEXTS = ["red apple, noto style", "green apple, fluent style", "red heart, noto style"]


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return train_tokenizer(TEXTS)


def test_round_trip(tokenizer: CLIPTokenizer) -> None:
    for text in TEXTS:
        numbers = tokenizer(text)["input_ids"]
        assert tokenizer.decode(numbers, skip_special_tokens=True).replace(" ,", ",") == text
        assert (numbers[0], numbers[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_words_of_the_captions_are_one_token(tokenizer: CLIPTokenizer) -> None:
    assert len(tokenizer("red apple")["input_ids"]) == 4


@pytest.mark.parametrize("text", ["zebra", "Zürich 5!", "рыба"])
def test_other_words_have_no_unknown_token(tokenizer: CLIPTokenizer, text: str) -> None:
    inner = tokenizer(text)["input_ids"][1:-1]
    assert inner
    assert tokenizer.unk_token_id not in inner


@pytest.mark.parametrize("kept", ["tokenizer.json", "vocab.json"])
def test_both_forms_of_the_saved_tokenizer_read_alike(
    tokenizer: CLIPTokenizer, tmp_path: Path, kept: str
) -> None:
    save_tokenizer(tokenizer, tmp_path)
    if kept == "vocab.json":
        (tmp_path / "tokenizer.json").unlink()
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert again.model_max_length == LENGTH
    for text in [*TEXTS, "", "some zebra"]:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_tokens_are_padded_and_cut(tokenizer: CLIPTokenizer) -> None:
    found = tokens(tokenizer, ["", "red apple " * 20])
    assert found.shape == (2, LENGTH)
    assert found[0].tolist() == [tokenizer.bos_token_id] + [tokenizer.eos_token_id] * (LENGTH - 1)
    assert int(found[1, -1]) == tokenizer.eos_token_id


def test_the_encoder_reads_word_order(tokenizer: CLIPTokenizer) -> None:
    torch.manual_seed(0)
    encoder = build_text_encoder(tokenizer, width=32).eval()
    first, second = encoder(tokens(tokenizer, ["red apple", "apple red"])).last_hidden_state
    assert first.shape == (LENGTH, 32)
    assert not torch.allclose(first[3], second[3], atol=1e-3)
