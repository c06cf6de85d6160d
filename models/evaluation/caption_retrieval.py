"""Caption retrieval: how often an image's own caption is the best of all that a small image-text
model knows. The model was trained on real emoji only (scripts/train_emoji_judge.py).

Two towers as in CLIP (Radford et al. 2021, arXiv 2103.00020): a linear map of EfficientNet-Lite0
features and a linear map of the caption's words, compared by cosine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.common.errors import InputError
from models.evaluation.base import DEFAULT, Estimate, Metric, MetricOptions, Samples
from models.evaluation.features import FeatureExtractor, extract, load_features

FOLDER = Path("data/pretrained/emoji_captions")
"""Where the weights are, from the project's root."""


class CaptionModel(nn.Module):
    """Scores (n, captions) of image features (n, `inputs`)."""

    mean: Tensor
    std: Tensor
    bags: Tensor

    def __init__(self, captions: Sequence[str], inputs: int = 1280, width: int = 128) -> None:
        super().__init__()
        self.captions, self.settings = tuple(captions), {"inputs": inputs, "width": width}
        self.index = {caption: i for i, caption in enumerate(self.captions)}
        vocabulary = sorted({word for caption in self.captions for word in words(caption)})
        bags = torch.zeros(len(self.captions), len(vocabulary))
        for i, caption in enumerate(self.captions):
            for word in words(caption):
                bags[i, vocabulary.index(word)] = 1
        self.register_buffer("bags", F.normalize(bags), persistent=False)
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("std", torch.ones(inputs))
        self.image = nn.Linear(inputs, width)
        self.text = nn.Linear(len(vocabulary), width, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.3))  # log of the factor on cosines

    def forward(self, features: Tensor) -> Tensor:
        images = F.normalize(self.image((features - self.mean) / self.std), dim=-1)
        texts = F.normalize(self.text(self.bags), dim=-1)
        return self.scale.exp() * images @ texts.T

    def numbers(self, prompts: Sequence[str]) -> Tensor:
        """Numbers (n,) of the prompts' captions; InputError for a caption it does not know."""
        names = [caption_of(prompt) for prompt in prompts]
        if unknown := sorted(set(names) - set(self.index)):
            raise InputError(
                f"caption_retrieval: caption {unknown[0]!r} is none of the {len(self.captions)} "
                f"that the model knows, such as {self.captions[0]!r}; leave the metric out, or "
                "train one on your captions with python -m scripts.train_emoji_judge"
            )
        return torch.tensor([self.index[name] for name in names])

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` in half precision and `config.json` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        (folder / "model.safetensors").chmod(0o644)
        config = json.dumps({**self.settings, "captions": self.captions}, indent=1)
        (folder / "config.json").write_text(config + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> CaptionModel:
        """Read what `save` wrote; InputError when it is missing or damaged."""
        try:
            model = cls(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
            weights = load_file(folder / "model.safetensors")
            model.load_state_dict({name: value.float() for name, value in weights.items()})
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{folder}: no usable caption model there ({reason}); expected config.json and "
                "model.safetensors; train them with python -m scripts.train_emoji_judge"
            ) from error
        return model.eval().requires_grad_(False)


def caption_of(prompt: str) -> str:
    """The caption of a prompt such as "red apple, noto style"."""
    return prompt.partition(",")[0].strip().lower()


def words(caption: str) -> list[str]:
    """The caption's words, in lower case."""
    return re.findall(r"[a-z0-9]+", caption.lower())


@torch.inference_mode()
def hits(model: CaptionModel, features: Tensor, prompts: Sequence[str], top: int = 1) -> Tensor:
    """(n,) bool: whether each image's caption is among the `top` best of all captions."""
    if len(features) != len(prompts):
        raise InputError(f"{len(features)} images with {len(prompts)} prompts: expected as many")
    best = model(features).topk(min(top, len(model.captions)), dim=1).indices
    return cast(Tensor, (best == model.numbers(prompts)[:, None]).any(1))


class CaptionRetrieval(Metric):
    """The share of images whose caption is ranked first, 0 to 1."""

    name = "caption_retrieval"
    title = "Caption retrieval"
    lower_is_better = False
    inputs = frozenset({"images", "prompts"})
    shows_interval = True

    def __init__(
        self,
        real: Samples,
        options: MetricOptions = DEFAULT,
        model: CaptionModel | None = None,
        extractor: FeatureExtractor | None = None,
    ) -> None:
        super().__init__(real, options)
        self.model = CaptionModel.load(FOLDER) if model is None else model
        self.extractor = load_features("efficientnet") if extractor is None else extractor

    def __call__(self, fake: Samples) -> Estimate:
        if fake.images is None or fake.prompts is None:
            raise InputError("caption_retrieval: expected images with a prompt each")
        features = extract(self.extractor, fake.images)
        return self.mean(hits(self.model, features, fake.prompts))
