"""A text-to-image pipeline with random weights, small enough for a CPU: for trying the stages, not
for images.

    python -m scripts.random_text_to_image FOLDER

writes FOLDER/teacher, a stock StableDiffusionPipeline of 16x16 images, and FOLDER/prompts.txt.
"""

from __future__ import annotations

import argparse
import itertools
import string
from pathlib import Path
from typing import Any

import torch

LETTERS = string.ascii_lowercase
WORDS = (("red", "blue", "tiny", "old"), ("cat", "dog", "owl", "fox"), ("up", "down", "inside"))
SIZE = 16  # pixels; latents have half of it


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.random_text_to_image", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder
    random_pipeline().save_pretrained(folder / "teacher")
    prompts = [" ".join(words) for words in itertools.product(*WORDS)]
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    print(f"{folder}/teacher: random weights; {folder}/prompts.txt: {len(prompts)} prompts")


def random_pipeline(seed: int = 0) -> Any:
    """A StableDiffusionPipeline of about 30,000 parameters; equal seeds, equal weights."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(seed)
    tokenizer, encoder = random_clip()
    network = UNet2DConditionModel(
        sample_size=SIZE // 2,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=4,
        cross_attention_dim=encoder.config.hidden_size,
    )
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=SIZE,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=network,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def random_clip() -> tuple[Any, Any]:
    """A tokenizer of single letters and a text encoder of CLIP's shape, for 77 tokens."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{c}</w>" for c in LETTERS)]
    vocabulary = {word: number for number, word in enumerate(words)}
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=32,
        projection_dim=32,
        num_attention_heads=4,
        num_hidden_layers=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    tokenizer = CLIPTokenizer(vocabulary, merges=[], model_max_length=77)
    return tokenizer, CLIPTextModel(config).eval()


if __name__ == "__main__":
    main()
