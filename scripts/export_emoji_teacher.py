"""Store a trained pipeline of emoji in half precision, as it ships.

`python -m scripts.export_emoji_teacher WORK/pipeline data/pretrained/emoji64`
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from models.teachers.loading import open_pipeline, save_pipeline
from scripts.emoji.text import save_tokenizer
from tasks.utils.cli import set_up_logging, user_errors


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args(argv)
    set_up_logging()
    with user_errors():
        export(arguments.pipeline, arguments.out)


def export(source: Path, out: Path) -> None:
    """Write `source` and its list of prompts to `out`; a README.md that is there stays.

    InputError without a pipeline.

    The text encoder keeps full precision: transformers opens it in the precision of its file,
    diffusers opens the other parts in float32, and the two have to agree.
    """
    pipeline = open_pipeline(source)
    pipeline.unet.to(torch.float16)
    pipeline.vae.to(torch.float16)
    pipeline.text_encoder.to(torch.float32)
    save_pipeline(pipeline, out)
    save_tokenizer(pipeline.tokenizer, out / "tokenizer")
    shutil.copyfile(source / "prompts.txt", out / "prompts.txt")


if __name__ == "__main__":
    main()
