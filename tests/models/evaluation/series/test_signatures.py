"""Sig-W1 against a direct computation, and signatures against integrals done by hand."""

from __future__ import annotations

import iisignature
import numpy as np
import pytest
from torch import from_numpy

from models.common.errors import InputError
from models.evaluation.base import MetricOptions, Samples
from models.evaluation.series.signatures import (
    SigW1,
    depth_for,
    lead_lag,
    normalised,
    signatures,
    unit_scale,
    words,
)
from tests.models.evaluation.series.made import ar1, measured


def test_the_depth_keeps_the_signature_short() -> None:
    assert [depth_for(c) for c in (1, 2, 3, 4, 5, 15)] == [4, 4, 3, 3, 2, 2]
    assert words(1, 4) == 120 == signatures(np.zeros((2, 1, 5)), 4).shape[1]
    assert all(words(c, depth_for(c)) <= 1000 for c in range(1, 16))
    with pytest.raises(InputError, match="signatures of 16 channels: expected at most 15"):
        depth_for(16)


def test_lead_and_lag_move_in_turn_from_the_origin() -> None:
    found = lead_lag(np.array([[[3.0, 5.0, 4.0]]]))[0]
    expected = [[0, 0, 0], [0, 3, 0], [0, 3, 3], [0.5, 5, 3], [0.5, 5, 5], [1, 4, 5], [1, 4, 4]]
    np.testing.assert_array_equal(found, expected)


def test_words_are_the_integrals_that_they_stand_for() -> None:
    """Level 1: time, end and end. Level 2: half squares, and lead-lag areas that differ by the
    quadratic variation, the step from the origin included.
    """
    x = ar1(7, 0, channels=1).numpy()
    found = signatures(x, 2)
    start_and_steps = np.concatenate([x[:, 0, :1], np.diff(x[:, 0])], axis=1)
    variation = np.square(start_and_steps).sum(1)
    end = x[:, 0, -1]
    np.testing.assert_allclose(found[:, :3], np.stack([np.ones(7), end, end], 1), atol=1e-12)
    level = found[:, 3:].reshape(7, 3, 3)  # [first letter, second letter]
    np.testing.assert_allclose(level[:, 1, 1], end**2 / 2, atol=1e-12)
    # int lead dlag - int lag dlead
    np.testing.assert_allclose(level[:, 1, 2] - level[:, 2, 1], variation, atol=1e-12)
    np.testing.assert_allclose(level[:, 1, 2] + level[:, 2, 1], end**2, atol=1e-12)


def test_sig_w1_is_the_distance_of_mean_signatures() -> None:
    real, fake = ar1(40, 0, channels=2).numpy(), ar1(30, 1, phi=0.4, channels=2).numpy()
    mean, std = real.mean((0, 2), keepdims=True), real.std((0, 2), keepdims=True)
    real_x, fake_x = (real - mean) / std, (fake - mean) / std
    scale = 1 / np.sqrt(np.square(np.diff(real_x, axis=2)).sum(2).mean(0))[:, None]

    def expected(paths: np.ndarray) -> np.ndarray:
        each = []
        for path in paths * scale:  # (C, L)
            lead, lag, time = [np.zeros(2)], [np.zeros(2)], [0.0]
            for t in range(path.shape[1]):
                before = path[:, t - 1] if t else np.zeros(2)
                lead += [path[:, t], path[:, t]]
                lag += [before, path[:, t]]
                time += [t / (path.shape[1] - 1)] * 2
            whole = np.concatenate([np.array(time)[:, None], np.array(lead), np.array(lag)], axis=1)
            each.append(iisignature.sig(whole, 4))
        return np.asarray(np.mean(each, axis=0))

    value = measured(SigW1, from_numpy(real), from_numpy(fake)).value
    direct = np.linalg.norm(expected(fake_x) - expected(real_x))
    assert value == pytest.approx(direct, rel=1e-9)


def test_resamples_are_those_of_repeated_paths() -> None:
    """A row of counts gives the distance of the set in which paths are repeated so often."""

    real, fake = ar1(20, 0), ar1(20, 1)
    options = MetricOptions(resamples=3, seed=4)
    metric = SigW1(Samples(series=real), options)
    counts = metric.counts(20)
    means = metric._means((fake - metric.centre) / metric.scale)
    rows = np.repeat(np.arange(20), counts[2].astype(int))
    repeated = (fake[from_numpy(rows)] - metric.centre) / metric.scale
    np.testing.assert_allclose(
        means[2], metric.signatures(repeated).mean(0), rtol=1e-10, atol=1e-12
    )


def test_scaled_paths_have_a_variation_of_one() -> None:
    rough = ar1(200, 0, phi=0.0, channels=2).numpy()
    rough[:, 1] *= 3
    scaled = rough * unit_scale(rough)
    variation = np.square(np.diff(scaled, axis=2)).sum(2).mean(0)
    np.testing.assert_allclose(variation, 1, rtol=1e-12)
    assert (unit_scale(0.01 * rough) == 1).all()  # smooth ones stay


def test_dilated_signatures_are_bounded_and_small_ones_are_unchanged() -> None:
    x = ar1(50, 0).numpy() * np.geomspace(0.05, 50, 50)[:, None, None]
    raw = signatures(x, 4)
    found = normalised(raw, 3)
    size, before = 1 + np.square(found).sum(1), 1 + np.square(raw).sum(1)
    target = np.where(before <= 4, before, 8 - 16 / before)
    np.testing.assert_allclose(size, target, rtol=1e-9)
    assert size.max() < 8 + 1e-9 and before.max() > 1e6
    small = before <= 4
    assert small.any() and (found[small] == raw[small]).all()
    # it is the signature of the dilated path: lead, lag and time times lambda
    factor = found[-1, 0] / raw[-1, 0]
    dilated = iisignature.sig(factor * lead_lag(x[-1:]), 4)
    np.testing.assert_allclose(found[-1], dilated[0], rtol=1e-6, atol=1e-12)
