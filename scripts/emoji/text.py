"""The text side of the teacher: a byte-pair tokenizer in CLIP's format and a small encoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LENGTH, VOCABULARY = 16, 1200
START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def train_tokenizer(texts: Sequence[str], size: int = VOCABULARY) -> CLIPTokenizer:
    """A tokenizer learnt from `texts`, of about `size` tokens; any UTF-8 text can be written with
    them.
    """
    # CLIP's own rules of splitting text into words
    rules = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[]).backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix=WORD_END, unk_token=END))
    learner.normalizer, learner.pre_tokenizer = rules.normalizer, rules.pre_tokenizer
    letters = sorted(ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[START, END],
        initial_alphabet=letters,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator(sorted(texts), trainer)
    learnt = json.loads(learner.to_str())["model"]
    vocab: dict[str, int] = dict(learnt["vocab"])
    for letter in letters:  # a letter that ends no word of the texts may end one of a prompt
        vocab.setdefault(letter + WORD_END, len(vocab))
    merges = [tuple(pair) for pair in learnt["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the tokenizer with CLIP's own vocab.json and merges.txt beside tokenizer.json, which
    older versions of transformers do not read.
    """
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))


def build_text_encoder(
    tokenizer: CLIPTokenizer, width: int = 128, layers: int = 2
) -> CLIPTextModel:
    """An untrained text encoder for the tokenizer's prompts."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def tokens(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Token numbers (n, LENGTH) as StableDiffusionPipeline makes them: padded, cut at the end."""
    encoded: Any = tokenizer(
        list(prompts), padding="max_length", max_length=LENGTH, truncation=True
    )
    return torch.tensor(encoded["input_ids"])
