"""Errors of all samplers to the exact law of the data, as rows of a table."""

from __future__ import annotations

from typing import Any

from models.evaluation.series.gaussian_laws import ks_limit
from tasks.evaluation.results import Result


def law_rows(result: Result) -> list[dict[str, Any]]:
    """One line per sampler: errors of mean (largest) and covariance, KS statistic (mean, largest),
    and the share of times at which it is below the 95 % quantile of the law itself.
    """
    rows = []
    for row in result.rows:
        if row.key not in result.law:
            continue
        errors = result.law[row.key]
        rows.append(
            {
                "sampler": row.sampler,
                "nfe": row.key.nfe,
                "title": row.title,
                "mean_error": float(errors.mean.max()),
                "covariance_error": errors.covariance,
                "ks_mean": float(errors.ks.mean()),
                "ks_max": float(errors.ks.max()),
                "ks_within": float((errors.ks <= ks_limit(row.images)).mean()),
            }
        )
    return rows
