"""Metrics by name. A class is imported when it is first asked for, so that names can be checked
without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from models.common.errors import InputError

if TYPE_CHECKING:
    from models.evaluation.base import Metric

_HERE = "models.evaluation"
METRICS: dict[str, str | type[Metric]] = {
    "kid": f"{_HERE}.kid:KID",
    "frechet": f"{_HERE}.frechet:FrechetDistance",
    "precision": f"{_HERE}.precision_recall:Precision",
    "recall": f"{_HERE}.precision_recall:Recall",
    "pixel_mean": f"{_HERE}.pixels:PixelMean",
    "pixel_std": f"{_HERE}.pixels:PixelStd",
    "path_rmse": f"{_HERE}.paths:PathRMSE",
    "clip_score": f"{_HERE}.clip:ClipScore",
    "aesthetic": f"{_HERE}.clip:Aesthetic",
    "caption_retrieval": f"{_HERE}.caption_retrieval:CaptionRetrieval",
    "sig_w1": f"{_HERE}.series.signatures:SigW1",
    "sig_mmd": f"{_HERE}.series.sig_mmd:SigMMD",
    "sig_mmd_p": f"{_HERE}.series.sig_mmd:SigMMDPValue",
    "marginal": f"{_HERE}.series.marginals:Marginal",
    "acf": f"{_HERE}.series.correlations:ACF",
    "acf_abs": f"{_HERE}.series.correlations:AbsoluteACF",
    "cross_correlation": f"{_HERE}.series.correlations:CrossCorrelation",
    "discriminative": f"{_HERE}.series.scores:Discriminative",
    "predictive": f"{_HERE}.series.scores:Predictive",
}


def register_metric(name: str, metric: str | type[Metric]) -> None:
    """Make a metric known under `name`: the class, or "module:Class" to import it on first use.

    Raises InputError if the name is another metric's.
    """
    known = METRICS.get(name)
    if known is not None and _place(known) != _place(metric):
        raise InputError(f"metric {name}: the name is taken by {_place(known)}; choose another")
    METRICS[name] = metric


def data_of(name: str) -> str | None:
    """What a known metric measures, "images" or "series"; None for both, and where only its class
    can tell, which is not imported here.
    """
    place = _place(METRICS[name])
    if name == "path_rmse" or not place.startswith(f"{_HERE}."):
        return None
    return "series" if place.startswith(f"{_HERE}.series.") else "images"


def metric_class(name: str) -> type[Metric]:
    """The class of that name; InputError for an unknown name or what is no metric."""
    from models.evaluation.base import Metric

    if name not in METRICS:
        raise InputError(f"metric {name}: expected one of {', '.join(sorted(METRICS))}")
    found = METRICS[name]
    if isinstance(found, str):
        module, _, attribute = found.partition(":")
        found = getattr(import_module(module), attribute)
    if not (isinstance(found, type) and issubclass(found, Metric)):
        raise InputError(f"metric {name}: {found!r} is no subclass of Metric")
    return found


def criterion_class(name: str, key: str) -> type[Metric]:
    """The metric's class; InputError, which names the parameter `key`, if it cannot choose between
    sets of samples.
    """
    metric = metric_class(name)
    if not _chooses(metric):
        usable = ", ".join(other for other in METRICS if _chooses(metric_class(other)))
        raise InputError(f"{key} = {name}: expected a metric of quality: {usable}")
    return metric


def _chooses(metric: type[Metric]) -> bool:
    return metric.lower_is_better is not None and metric.inputs <= {"features", "images", "series"}


def _place(metric: str | type[Metric]) -> str:
    return metric if isinstance(metric, str) else f"{metric.__module__}:{metric.__qualname__}"
