"""The scores of trained networks: their GRU against torch's, and their laws."""

from __future__ import annotations

import pytest
import torch

from models.common.errors import InputError
from models.evaluation.base import MetricOptions, Samples
from models.evaluation.series.recurrent import GRUs, Training, fit
from models.evaluation.series.scores import SEEDS, Discriminative, Predictive
from tests.models.evaluation.series.made import ar1, measured

FEW = MetricOptions(few=200)


def test_the_batched_gru_is_that_of_torch() -> None:
    ours = GRUs(2, 5, 3, [0, 1])
    x = torch.randn(2, 4, 6, 2, generator=torch.Generator().manual_seed(0))
    for index in range(2):
        theirs, head = torch.nn.GRU(2, 5, batch_first=True), torch.nn.Linear(5, 3)
        into, onto, bias_in, bias_on, out, out_bias = (w[index].detach() for w in ours.weights)
        theirs.weight_ih_l0.data, theirs.weight_hh_l0.data = into.T, onto.T
        theirs.bias_ih_l0.data, theirs.bias_hh_l0.data = bias_in[0], bias_on[0]
        head.weight.data, head.bias.data = out.T, out_bias[0]
        expected = head(theirs(x[index])[0])
        torch.testing.assert_close(ours(x)[index], expected, rtol=1e-5, atol=1e-6)


def test_networks_of_different_seeds_do_not_touch_each_other() -> None:
    x = torch.randn(1, 20, 5, 1, generator=torch.Generator().manual_seed(0))

    def trained(seeds: list[int]) -> torch.Tensor:
        networks = GRUs(1, 4, 1, seeds)
        many = x.expand(len(seeds), -1, -1, -1)
        loss = lambda o, y: (o - y).square().flatten(1).mean(1).sum()  # noqa: E731
        fit(networks, many, many, loss, Training(steps=5, batch=20), 3)  # one batch: all rows
        return networks.weights[1].detach()

    together, alone = trained([7, 8]), trained([7])
    torch.testing.assert_close(together[0], alone[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1])


def test_discriminative_is_near_0_for_one_law_and_near_a_half_for_far_ones() -> None:
    real = ar1(200, 0)
    same = measured(Discriminative, real, ar1(200, 1), FEW)
    near = measured(Discriminative, real, ar1(200, 1, std=0.7), FEW)
    far = measured(Discriminative, real, ar1(200, 1) + 3, FEW)
    assert same.value < 0.1 < near.value < far.value
    assert far.value > 0.45
    assert len(same.draws) == 1 + SEEDS and same.low <= same.value <= same.high


def test_predictive_is_least_for_the_right_law() -> None:
    """The best forecast of AR(1) errs by sqrt(1 - phi^2) sqrt(2 / pi)."""
    real = ar1(400, 0, phi=0.9)
    right = measured(Predictive, real, ar1(400, 1, phi=0.9), MetricOptions(few=400))
    wrong = measured(Predictive, real, ar1(400, 1, phi=0.2), MetricOptions(few=400))
    best = (1 - 0.9**2) ** 0.5 * (2 / torch.pi) ** 0.5
    assert best * 0.95 < right.value < best * 1.2
    assert wrong.value > 1.3 * right.value


def test_scores_repeat_and_work_in_inference_mode() -> None:
    real, fake = Samples(series=ar1(40, 0)), Samples(series=ar1(40, 1))
    before = torch.get_rng_state()
    for metric in (Discriminative, Predictive):
        first = metric(real)(fake)
        with torch.inference_mode():
            second = metric(real)(Samples(series=ar1(40, 1)))
        assert (first.draws == second.draws).all()
    assert (torch.get_rng_state() == before).all()


def test_too_few_paths_are_refused() -> None:
    with pytest.raises(InputError, match="metric predictive: 8 paths, expected at least 10"):
        measured(Predictive, ar1(30, 0), ar1(8, 1))
