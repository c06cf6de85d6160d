"""The training loop: exact resume, accumulation, averaging over workers, clipping, EMA, guards."""

from __future__ import annotations

import math
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.common.random import generator_for
from models.methods.base import Trainable
from models.training.loop import LoopConfig, NonFiniteError, StepReport, TrainState, train
from tasks.training.checkpoints import flatten, latest_checkpoint, save_checkpoint, unflatten


def small_net(width: int = 6, dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 2))


class Regression(Trainable):
    """A method of one or two networks; with ``noisy``, the loss draws from the generator and from
    dropout.
    """

    def __init__(
        self, networks: Sequence[str] = ("student",), noisy: bool = False, bad_step: int = -1
    ):
        torch.manual_seed(0)
        self.networks: Mapping[str, nn.Module] = {
            p: small_net(dropout=0.3 * noisy) for p in networks
        }
        self.ema: tuple[str, ...] = (networks[0],)
        self.noisy, self.bad_step, self.seen = noisy, bad_step, -1

    def updates(self, step: int) -> Sequence[str]:
        names = list(self.networks)
        return [names[0]] if len(names) == 1 else [names[1], names[1], names[0]]

    def loss(
        self, role: str, batch: tuple[Tensor, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = batch
        if self.noisy:
            x = x + 0.1 * torch.randn(x.shape, generator=generator)
        out = self.networks[role](x)
        if len(self.networks) > 1:
            other = self.networks[next(p for p in self.networks if p != role)]
            out = out + other(x).detach()
        error = (out - y).square().mean()
        self.seen += 1
        return (error * math.nan if self.seen == self.bad_step else error), {"twice": 2 * error}

    def sample(self, noise: Tensor, labels: Tensor | None = None, **options: Any) -> Tensor:
        return noise


def data(rows: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 3, generator=generator)
    return x, torch.stack([x.sum(1), x.prod(1)], 1)


def batches(step: int, micro: int, turn: int) -> tuple[Tensor, Tensor]:
    x, y = data(60)
    rows = torch.randint(60, (8,), generator=generator_for("cpu", 5, step, micro, turn))
    return x[rows], y[rows]


def run(
    state: TrainState, method: Regression, give: Any = batches, until: int | None = None
) -> list[StepReport]:
    reports = []
    for report in train(method, give, state):
        reports.append(report)
        if report.step == until:
            break
    return reports


def equal(a: Any, b: Any) -> bool:
    """Bitwise equality of two nested states."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


@pytest.mark.parametrize("networks", [("student",), ("student", "critic")])
def test_resume_is_exact(tmp_path: Path, networks: tuple[str, ...]) -> None:
    """2N steps = N, a checkpoint on disk, new objects, N: weights, EMA, optimizers, reports."""
    config = LoopConfig(steps=12, warmup=3, ema=0.9, accumulate=2, weight_decay=0.01, clip=0.5)
    whole = Regression(networks, noisy=True)
    straight = TrainState(whole, config)
    reports = run(straight, whole)

    first = Regression(networks, noisy=True)
    half = TrainState(first, config)
    run(half, first, until=6)
    tensors, tree = flatten(half.state_dict())
    save_checkpoint(tmp_path, 6, tensors, tree)

    torch.manual_seed(99)  # a resumed process has another global stream
    second = Regression(networks, noisy=True)
    for parameter in second.networks["student"].parameters():
        nn.init.normal_(parameter)
    resumed = TrainState(second, config)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    resumed.load_state_dict(unflatten(*found.load()))
    assert resumed.step == 6
    later = run(resumed, second)
    assert [r.step for r in later] == [7, 8, 9, 10, 11, 12] and later == reports[6:]
    assert equal(straight.state_dict(), resumed.state_dict())
    assert not equal(straight.state_dict(), half.state_dict())


def test_a_run_does_not_depend_on_the_global_stream() -> None:
    states = []
    for seed in (1, 2):
        method = Regression(noisy=True)
        state = TrainState(method, LoopConfig(steps=3))
        torch.manual_seed(seed)
        run(state, method)
        assert torch.initial_seed() == seed  # and leaves it alone
        states.append(state.state_dict())
    assert equal(*states)


def test_accumulation_is_the_big_batch() -> None:
    """Three batches of four rows make the same update as one of twelve."""
    x, y = data(12)
    outcomes = []
    for accumulate in (1, 3):
        method = Regression()
        state = TrainState(method, LoopConfig(steps=4, learning_rate=0.1, accumulate=accumulate))
        size = 12 // accumulate
        reports = run(
            state,
            method,
            lambda _s, m, _t, n=size: (x[m * n : (m + 1) * n], y[m * n : (m + 1) * n]),
        )
        outcomes.append((method.networks["student"].state_dict(), reports[-1].terms))
    for name, value in outcomes[0][0].items():
        torch.testing.assert_close(outcomes[1][0][name], value, rtol=1e-4, atol=1e-5)
    assert outcomes[0][1] == pytest.approx(outcomes[1][1], rel=1e-3)
    assert outcomes[0][1]["student/twice"] == pytest.approx(2 * outcomes[0][1]["student/loss"])


def test_clipping() -> None:
    """Gradients reach the optimizer with norm ``clip``; the report has the norm before; 0 is no
    clipping.
    """
    norms: dict[float, tuple[float, float]] = {}
    for clip in (0.0, 1e-3, 1e3):
        method = Regression()
        state = TrainState(method, LoopConfig(steps=1, clip=clip))
        (report,) = run(state, method)
        gradients = [p.grad for p in method.networks["student"].parameters()]
        applied = torch.cat([g.flatten() for g in gradients if g is not None])
        norms[clip] = (report.terms["student/grad_norm"], float(applied.norm()))
    assert norms[0.0] == norms[1e3] and norms[0.0][0] == pytest.approx(norms[0.0][1], rel=1e-5)
    assert norms[1e-3] == pytest.approx((norms[0.0][0], 1e-3), rel=1e-3)


def test_ema_follows_its_formula() -> None:
    method = Regression()
    live = dict(method.networks["student"].named_parameters())
    state = TrainState(method, LoopConfig(steps=30, learning_rate=0.05, ema=0.6))
    expected = {name: p.detach().clone().double() for name, p in live.items()}
    for report in train(method, batches, state):
        decay = min(0.6, (1 + report.step) / (10 + report.step))
        expected = {
            name: decay * expected[name] + (1 - decay) * p.detach() for name, p in live.items()
        }
    ema = state.ema_state("student")
    assert set(ema) == set(method.networks["student"].state_dict())
    for name, value in expected.items():
        torch.testing.assert_close(ema[name], value.float(), rtol=1e-5, atol=1e-6)
        assert not torch.equal(ema[name], live[name])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_nan_stops_before_the_step_is_applied(accumulate: int) -> None:
    method = Regression(bad_step=3 * accumulate + accumulate - 1)
    state = TrainState(method, LoopConfig(steps=10, accumulate=accumulate))
    reports = []
    with pytest.raises(
        NonFiniteError, match=r"step 4: loss or gradient of student is not finite"
    ) as caught:
        for report in train(method, batches, state):
            reports.append(report.step)
            kept = unflatten(*_copied(state.state_dict()))
    assert (caught.value.step, caught.value.role, reports, state.step) == (
        4,
        "student",
        [1, 2, 3],
        3,
    )
    assert equal(state.state_dict(), kept)


def _copied(state: Any) -> tuple[dict[str, Tensor], Any]:
    tensors, tree = flatten(state)
    return {name: value.clone() for name, value in tensors.items()}, tree


def test_an_infinite_gradient_of_a_finite_loss_is_caught() -> None:
    method = Regression()
    x, y = data()
    with torch.no_grad():
        weight = next(method.networks["student"].parameters())
    weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteError, match="step 1"):
        run(TrainState(method, LoopConfig(steps=2)), method, lambda *_: (x, y))


def test_schedule() -> None:
    cosine = LoopConfig(steps=110, warmup=10)
    assert [cosine.rate(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert cosine.rate(60) == pytest.approx(0.5) and cosine.rate(85) == pytest.approx(
        0.5 - math.sqrt(0.125)
    )
    assert cosine.rate(110) == pytest.approx(0.0) and cosine.rate(500) == pytest.approx(0.0)
    constant = LoopConfig(steps=110, warmup=10, schedule="constant")
    assert [constant.rate(step) for step in (0, 10, 109)] == pytest.approx([0.1, 1.0, 1.0])
    assert LoopConfig(steps=1).rate(0) == 1.0


def test_rates_of_players_and_of_single_weights() -> None:
    method = Regression(("student", "critic"))
    first = next(method.networks["student"].parameters())
    first.rate_scale = 10.0  # type: ignore[attr-defined]
    state = TrainState(
        method, LoopConfig(steps=4, learning_rate=1e-3, warmup=2, learning_rates={"critic": 5e-3})
    )
    (report,) = run(state, method, until=1)
    rates = {name: [g["lr"] for g in o.param_groups] for name, o in state.optimizers.items()}
    assert rates["student"] == pytest.approx([5e-4, 5e-3]) and rates["critic"] == pytest.approx(
        [2.5e-3]
    )
    assert [p is first for p in state.optimizers["student"].param_groups[1]["params"]] == [True]
    assert report.learning_rate == pytest.approx(5e-4)
    assert "critic/loss" in report.terms and list(state.ema_weights) == ["student"]


def test_frozen_weights_stay() -> None:
    method = Regression()
    frozen = method.networks["student"].get_parameter("0.weight").requires_grad_(False)
    before = frozen.clone()
    state = TrainState(method, LoopConfig(steps=3, weight_decay=0.1))
    run(state, method)
    assert torch.equal(frozen, before) and "0.weight" not in state.ema_weights["student"]


def test_every_loss_has_its_own_noise() -> None:
    """Steps, micro-batches, turns and ranks draw differently; the same of all four draws the
    same.
    """

    class Listening(Regression):
        def loss(
            self, role: str, batch: Any, generator: torch.Generator
        ) -> tuple[Tensor, dict[str, Tensor]]:
            heard.append(
                (
                    round(float(torch.randn((), generator=generator)), 6),
                    round(float(torch.randn(())), 6),
                )
            )
            return super().loss(role, batch, generator)

    heard: list[tuple[float, float]] = []
    for rank in (0, 1, 0):
        method = Listening(("student", "critic"))
        state = TrainState(method, LoopConfig(steps=2, accumulate=2))
        list(train(method, batches, state, rank=rank))
    assert heard[:12] == heard[24:]
    for draws in zip(
        *heard[:24], strict=True
    ):  # of the loss's generator, and of the one that dropout uses
        assert len(set(draws)) == 24


def test_keys_give_their_own_streams() -> None:
    draws = {
        key: torch.randn(4, generator=generator_for("cpu", *key))
        for key in [(0, 1), (1, 0), (0, 1, 0), (0,)]
    }
    values = list(draws.values())
    assert not any(torch.equal(a, b) for i, a in enumerate(values) for b in values[i + 1 :])
    assert torch.equal(draws[0, 1], torch.randn(4, generator=generator_for("cpu", 0, 1)))
    means = torch.stack([torch.randn(64, generator=generator_for("cpu", 7, i)) for i in range(400)])
    assert (
        abs(float(means.mean())) < 5 / math.sqrt(means.numel())
        and abs(float(means.std()) - 1) < 0.03
    )


def _worker(rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    x, y = data(12)
    mine = slice(rank * 6, rank * 6 + 6)
    method = Regression()
    state = TrainState(method, LoopConfig(steps=3, learning_rate=0.1, clip=0.1))
    norms = [
        r.terms["student/grad_norm"]
        for r in train(method, lambda *_: (x[mine], y[mine]), state, rank=rank)
    ]
    save_checkpoint(Path(folder) / str(rank), 3, *flatten(state.state_dict() | {"norms": norms}))
    dist.destroy_process_group()


def test_two_workers_are_one_with_both_batches(tmp_path: Path) -> None:
    """Gradients are averaged over gloo before they are clipped; both workers end with the same
    weights.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_worker, args=(2, port, str(tmp_path)), nprocs=2)
    states = []
    for rank in range(2):
        found = latest_checkpoint(tmp_path / str(rank))
        assert found is not None
        states.append(unflatten(*found.load()))
    assert equal(states[0]["networks"], states[1]["networks"])
    method = Regression()
    state = TrainState(method, LoopConfig(steps=3, learning_rate=0.1, clip=0.1))
    reports = run(state, method, lambda *_: data(12))
    norms = [report.terms["student/grad_norm"] for report in reports]
    assert states[0]["norms"] == pytest.approx(
        norms, rel=1e-4
    )  # Adam alone would hide a wrong factor
    assert states[1]["norms"] == states[0]["norms"]
    for name, value in method.networks["student"].state_dict().items():
        torch.testing.assert_close(
            states[0]["networks"]["student"][name], value, rtol=1e-4, atol=1e-5
        )
