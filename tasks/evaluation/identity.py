"""Digests of what an evaluation's figures depend on: equal ones make figures comparable."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from torch import Tensor

from tasks.config.schema import Params
from tasks.data.reference import to_bytes
from tasks.evaluation.extractor import content_digest, extractor_digest


def content_digests(params: Params, root: Path, real: Tensor) -> dict[str, str]:
    """Names (hex) of the content behind the parameters.

    `real`: the images (n, C, H, W) or series (n, C, L) that everything was measured against,
    wherever they are from; `features`: the criterion's extractor, of images alone; `rivals`: the
    folders of other students. The first two make the student's own figures comparable.
    """
    rivals = {
        f"rivals.{place}": content_digest(root / folder)
        for place, folder in enumerate(params.evaluation.rivals)
    }
    if params.dataset.data_kind == "series":
        return {"real": series_digest(real), **rivals}
    features = extractor_digest(params.evaluation.features, root)
    return {"real": images_digest(real), "features": features, **rivals}


def series_digest(series: Tensor) -> str:
    """SHA-256 of series (n, C, L) as float32, with their shape."""
    digest = hashlib.sha256(repr(tuple(series.shape)).encode())
    digest.update(np.ascontiguousarray(series.numpy(), dtype="<f4").tobytes())
    return digest.hexdigest()


def images_digest(images: Tensor) -> str:
    """SHA-256 of images (n, C, H, W) in [-1, 1] as bytes, with their shape."""
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    for part in images.split(1000):
        digest.update(np.ascontiguousarray(to_bytes(part)).tobytes())
    return digest.hexdigest()
