"""What all metrics of series share: units, refusals, and laws that each must tell apart."""

from __future__ import annotations

import pytest
import torch

from models.common.errors import InputError
from models.evaluation.base import Metric, MetricOptions, Samples
from models.evaluation.registry import METRICS, criterion_class, metric_class
from tests.models.evaluation.series.made import ar1, measured

ALL = sorted(name for name in METRICS if metric_class(name).inputs == {"series"})
DISTANCES = ["sig_w1", "sig_mmd", "marginal", "acf", "acf_abs", "cross_correlation"]
FAST = [name for name in ALL if name not in ("discriminative", "predictive")]


def test_there_are_these() -> None:
    assert {*DISTANCES, "sig_mmd_p", "discriminative", "predictive"} == set(ALL)
    assert criterion_class("sig_w1", "evaluation.criterion") is metric_class("sig_w1")
    with pytest.raises(InputError, match="evaluation.criterion = sig_mmd_p: expected a metric of"):
        criterion_class("sig_mmd_p", "evaluation.criterion")


@pytest.mark.parametrize("name", ALL)
def test_units_of_channels_do_not_matter(name: str) -> None:
    real, fake = ar1(60, 0, channels=2), ar1(60, 1, phi=0.5, channels=2)
    units = torch.tensor([100.0, 0.01]).view(1, 2, 1).double()
    shift = torch.tensor([-300.0, 0.2]).view(1, 2, 1).double()
    plain = measured(metric_class(name), real, fake)
    other = measured(metric_class(name), real * units + shift, fake * units + shift)
    assert plain.value == pytest.approx(other.value, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", DISTANCES)
def test_falls_to_its_floor_for_one_law_and_grows_with_the_error(name: str) -> None:
    """Correlation between channels, deviation, and memory are changed at once, by more and more."""

    def law(seed: int, wrong: float) -> torch.Tensor:
        x = ar1(600, seed, phi=0.8 - 0.4 * wrong, std=1 - 0.3 * wrong, channels=2)
        x[:, 1] = 0.6 * (1 - wrong) * x[:, 0] + 0.8 * x[:, 1]
        return x

    metric: Metric = metric_class(name)(Samples(series=law(0, 0)), MetricOptions())
    right, wrong, worse = (
        [metric(Samples(series=law(10 * seed + 1, error))).value for seed in range(3)]
        for error in (0.0, 0.4, 0.8)
    )
    assert max(right) < min(wrong) and max(wrong) < min(worse)
    assert max(right) < 0.5 * min(worse)


@pytest.mark.parametrize("name", FAST)
def test_sets_that_cannot_be_compared_are_refused(name: str) -> None:
    real = ar1(30, 0, channels=2)
    metric = metric_class(name)(Samples(series=real), MetricOptions())
    with pytest.raises(InputError, match="generated series are 2x20 .*, the real ones 2x24"):
        metric(Samples(series=ar1(30, 1, length=20, channels=2)))
    broken = real.clone()
    broken[3, 1, 4] = float("nan")
    with pytest.raises(InputError, match="series hold NaN or infinite values"):
        metric(Samples(series=broken))
    with pytest.raises(InputError, match=r"no series: expected \(n, channels, length\)"):
        metric(Samples(images=torch.zeros(3, 1, 4, 4)))


def test_a_set_that_cannot_be_measured_against_is_refused() -> None:
    flat = ar1(30, 0, channels=2)
    flat[:, 1] = 0.1  # 0.1 has no exact float: its computed deviation is not 0
    with pytest.raises(InputError, match="channel 1 of the real series is constant"):
        metric_class("acf")(Samples(series=flat), MetricOptions())
    for bad in (torch.zeros(5, 4), torch.zeros(1, 1, 4), torch.zeros(5, 1, 1)):
        with pytest.raises(InputError, match="expected .n, channels, length. with n >= 2"):
            metric_class("acf")(Samples(series=bad), MetricOptions())
    with pytest.raises(InputError, match="cross_correlation: needs 2 channels or more, .* have 1"):
        metric_class("cross_correlation")(Samples(series=ar1(30, 0)), MetricOptions())


@pytest.mark.parametrize("name", ["sig_w1", "sig_mmd", "marginal", "acf"])
def test_intervals_hold_their_value_and_differences_are_paired(name: str) -> None:
    real, base = ar1(300, 0), ar1(300, 1)
    metric = metric_class(name)(Samples(series=real), MetricOptions(resamples=200))
    noise = 0.6 * ar1(300, 2, phi=0.0)
    worse, better = metric(Samples(series=base + noise)), metric(Samples(series=base + 0.9 * noise))
    assert worse.low < worse.value < worse.high
    gap = worse.minus(better)
    assert gap.low <= gap.value <= gap.high
    assert gap.high - gap.low < worse.high - worse.low  # shared paths cancel
    again = metric_class(name)(Samples(series=real), MetricOptions(resamples=200))
    assert (again(Samples(series=base + noise)).draws == worse.draws).all()


@pytest.mark.parametrize("name", ["sig_w1", "marginal", "acf"])
def test_figures_with_a_bias_take_as_many_paths_of_each_set(name: str) -> None:
    real, fake = ar1(200, 0), ar1(300, 1)
    options = MetricOptions(few=100)
    assert (
        measured(metric_class(name), real, fake, options).value
        == measured(metric_class(name), real, fake[:100], options).value
    )


def test_intervals_cover_as_often_as_they_say() -> None:
    """The bias of a distance of means moves its interval: for a wrong law, where the bias is
    small, it holds the value of infinitely many paths.
    """
    metric, covered = metric_class("acf"), 0
    truth = measured(metric, ar1(40000, 1), ar1(40000, 2, phi=0.6)).value
    for seed in range(60):
        real, fake = ar1(200, 2 * seed + 10), ar1(200, 2 * seed + 11, phi=0.6)
        estimate = measured(metric, real, fake, MetricOptions(resamples=150, seed=seed))
        covered += estimate.low <= truth <= estimate.high
    assert 50 <= covered <= 60
