"""The feature extractor that the parameters name."""

from __future__ import annotations

from pathlib import Path

from models.evaluation.features import FeatureExtractor, load_features
from tasks.config.evaluation import MnistFeatures
from tasks.config.schema import Params

FEATURES = Path("data/pretrained/mnist_features")


def extractor_of(params: Params, root: Path) -> FeatureExtractor:
    """The feature extractor that `evaluation.features` names."""
    settings = params.evaluation.features
    if isinstance(settings, MnistFeatures):
        return load_features("mnist", folder=root / FEATURES)
    path = getattr(settings, "path", None)
    return load_features(
        settings.kind, path=None if path is None else root / path, size=settings.size
    )
