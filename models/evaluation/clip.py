"""Scores by a CLIP model of the user's: how well images fit their prompts, and how they please.

CLIP score (Hessel et al. 2021, arXiv 2104.08718): the cosine of an image's and its prompt's
embedding, not below 0, here times 100 as most papers print it. Aesthetic score: what a stack of
linear layers says of the image's embedding, brought to length 1 (Schuhmann et al. 2022, arXiv
2210.08402, section 4.3 and the predictors that followed it); people's ratings from 1 to 10.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.common.errors import InputError
from models.evaluation.base import DEFAULT, Estimate, Metric, MetricOptions, Samples
from models.evaluation.features import TransformersFeatures

BATCH = 100
TOKENIZERS = ("tokenizer.json", "vocab.json", "spiece.model")


class Clip:
    """Image and text embeddings (n, d), each of length 1, of a transformers folder.

    Raises InputError for a folder without a CLIP model, its image processor and its tokenizer.
    """

    def __init__(self, path: Path) -> None:
        from transformers import AutoTokenizer

        self.images_of = TransformersFeatures(path)
        self.net: Any = self.images_of.net
        if not hasattr(self.net, "get_text_features"):
            kind = type(self.net).__name__
            raise InputError(
                f"evaluation.clip.path = {path}: a {kind} reads no text; expected a CLIP model, "
                "images and text, as CLIPModel.save_pretrained writes it"
            )
        # without files transformers makes a tokenizer that knows no words, and says nothing
        if not any((path / name).is_file() for name in TOKENIZERS):
            raise InputError(
                f"evaluation.clip.path = {path}: no tokenizer; expected {' or '.join(TOKENIZERS)} "
                "beside the model, as tokenizer.save_pretrained writes them"
            )
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)

    @torch.inference_mode()
    def of_images(self, images: Tensor) -> Tensor:
        """Of images (n, C, H, W) in [-1, 1]."""
        parts = [self.images_of(part.float()) for part in images.split(BATCH)]
        return F.normalize(torch.cat(parts), dim=-1)

    def of_samples(self, samples: Samples) -> Tensor:
        """Of the images of ``samples``, which are looked at once for all metrics."""
        images = samples.images
        if images is None:
            raise InputError("no images: expected those of a sampler")
        return samples.once(self, lambda: self.of_images(images))

    @torch.inference_mode()
    def of_prompts(self, prompts: tuple[str, ...]) -> Tensor:
        """Of texts; what the model cannot read of a long one is cut off. Each is read once."""
        distinct = list(dict.fromkeys(prompts))
        text = getattr(self.net.config, "text_config", self.net.config)
        limit = int(text.max_position_embeddings)
        parts = []
        for low in range(0, len(distinct), BATCH):
            tokens = self.tokenizer(
                distinct[low : low + BATCH],
                padding="max_length",
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            )
            found = self.net.get_text_features(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
            )
            parts.append(found if isinstance(found, Tensor) else found.pooler_output)
        rows = F.normalize(torch.cat(parts).float(), dim=-1)
        place = {prompt: row for row, prompt in enumerate(distinct)}
        return rows[[place[prompt] for prompt in prompts]]


@lru_cache(maxsize=1)
def open_clip(path: Path) -> Clip:
    """The model of a folder, opened once for all metrics that look through it."""
    return Clip(path)


def load_aesthetic(path: Path, width: int) -> list[tuple[Tensor, Tensor]]:
    """The linear layers (weight, bias) of a predictor for embeddings of ``width`` entries, in the
    order of the numbers in their names.

    Raises InputError for another kind of file, and for layers that do not follow one another from
    ``width`` entries to one.
    """
    expected = (
        f"expected a .safetensors of linear layers NAME.weight, NAME.bias from {width} entries to 1"
    )
    if path.suffix != ".safetensors":
        raise InputError(
            f'evaluation.clip.aesthetic = {path}: {expected}; of a .pth, python -c "import torch, '
            "safetensors.torch as s; s.save_file(torch.load('x.pth', weights_only=True), "
            "'x.safetensors')\""
        )
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"evaluation.clip.aesthetic = {path}: {reason}; {expected}") from error
    names = [name.removesuffix("weight") for name in found if name.endswith("weight")]
    names.sort(key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    if {*(f"{n}weight" for n in names), *(f"{n}bias" for n in names)} != set(found):
        raise InputError(f"evaluation.clip.aesthetic = {path}: has {', '.join(found)}; {expected}")
    layers = [(found[f"{n}weight"].float(), found[f"{n}bias"].float()) for n in names]
    sizes = [width, *(weight.shape[0] for weight, _ in layers)]
    if not layers or sizes[-1] != 1 or [w.shape[1] for w, _ in layers] != sizes[:-1]:
        shapes = ", ".join(str(tuple(weight.shape)) for weight, _ in layers)
        raise InputError(f"evaluation.clip.aesthetic = {path}: layers {shapes}; {expected}")
    return layers


class ClipScore(Metric):
    """100 times the cosine of image and prompt, the mean over images; about 20 to 35."""

    name = "clip_score"
    title = "CLIP score"
    lower_is_better = False
    inputs = frozenset({"images", "prompts"})
    shows_interval = True

    def __init__(self, real: Samples, options: MetricOptions = DEFAULT) -> None:
        super().__init__(real, options)
        if options.clip is None:
            raise InputError("clip_score: expected a model in evaluation.clip.path")
        self.clip = open_clip(options.clip)

    def __call__(self, fake: Samples) -> Estimate:
        if fake.images is None or fake.prompts is None:
            raise InputError("clip_score: expected images with a prompt each")
        cosine = (self.clip.of_samples(fake) * self.clip.of_prompts(fake.prompts)).sum(1)
        return self.mean(100 * cosine.clamp(min=0))


class Aesthetic(Metric):
    """The predicted rating, the mean over images. It does not choose: a student that leaves its
    teacher for brighter colours may please more.
    """

    name = "aesthetic"
    title = "Aesthetic score"
    lower_is_better = None
    inputs = frozenset({"images"})
    shows_interval = True

    def __init__(self, real: Samples, options: MetricOptions = DEFAULT) -> None:
        super().__init__(real, options)
        if options.clip is None or options.aesthetic is None:
            raise InputError("aesthetic: expected evaluation.clip.path and .aesthetic")
        self.clip = open_clip(options.clip)
        self.layers = load_aesthetic(options.aesthetic, self.clip.images_of.dim)

    def __call__(self, fake: Samples) -> Estimate:
        if fake.images is None:
            raise InputError("aesthetic: expected images")
        rating = self.clip.of_samples(fake)
        for weight, bias in self.layers:
            rating = F.linear(rating, weight, bias)
        return self.mean(rating[:, 0])
