"""A teacher's own training: what the network is shown and what it is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor, nn

from models.common.errors import InputError
from models.common.random import generator_for
from models.methods import denoising
from models.methods.denoising import Denoising, Images
from models.teachers.architectures import build_scheduler, build_unet
from models.teachers.conditioning import class_condition
from tests.tiny import tiny_unet

PREDICTIONS = ["epsilon", "v_prediction", "sample", "flow"]


def shown(method: Denoising, batch: Images, seed: int = 0) -> tuple[dict[str, Any], float]:
    """What the network was called with, and the loss, at one stream of noise."""
    seen: dict[str, Any] = {}

    def look(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _out: Any) -> None:
        seen.update(
            {
                "x": args[0],
                "t": args[1],
                "labels": kwargs.get("class_labels"),
                "out": _out[0].detach(),
            }
        )

    handle = method.networks["teacher"].register_forward_hook(look, with_kwargs=True)
    loss, terms = method.loss("teacher", batch, generator_for("cpu", seed))
    handle.remove()
    assert list(terms) == [f"mse_{seen['x'].shape[-1]}"]
    return seen, float(loss.detach())


def images(n: int = 64) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_is_the_error_of_the_prediction(prediction: str) -> None:
    """The noise is recovered from what the network saw; the target then follows from the
    definitions.
    """
    method = Denoising(tiny_unet(), build_scheduler(prediction, "linear"), [8])
    x0 = images()
    seen, loss = shown(method, Images(x0, None, 0))
    t = seen["t"].double()
    if prediction == "flow":
        sigma = (t / 1000).view(-1, 1, 1, 1)
        alpha = 1 - sigma
    else:
        squared = method.teacher.scheduler.alphas_cumprod.double()[seen["t"]].view(-1, 1, 1, 1)
        alpha, sigma = squared.sqrt(), (1 - squared).sqrt()
    eps = (seen["x"].double() - alpha * x0) / sigma
    assert abs(eps.mean()) < 0.1 and abs(eps.std() - 1) < 0.1
    assert 0 <= t.min() < 150 and 850 < t.max() < 1000 and len(t.unique()) > 50
    target = {
        "epsilon": eps,
        "v_prediction": alpha * eps - sigma * x0,
        "sample": x0,
        "flow": eps - x0,
    }[prediction]
    assert loss == pytest.approx(float((seen["out"].double() - target).square().mean()), rel=1e-3)
    assert method.networks["teacher"].training and all(
        p.requires_grad for p in method.networks["teacher"].parameters()
    )


def test_scales_take_turns_and_are_area_means() -> None:
    """One per batch; at the least noise the network sees nearly the means of 2 x 2 pixels."""
    method = Denoising(tiny_unet(), build_scheduler("sample", "linear"), [4, 8])
    x0 = images(200)
    sizes = [shown(method, Images(x0[:2], None, step))[0]["x"].shape[-1] for step in range(4)]
    assert sizes == [4, 8, 4, 8]
    seen, _ = shown(method, Images(x0, None, 0))
    least = int(seen["t"].argmin())
    alpha = float(method.teacher.scheduler.alphas_cumprod[seen["t"][least]]) ** 0.5
    gap = seen["x"][least] - alpha * F.avg_pool2d(x0[least], 2)
    assert gap.std() == pytest.approx((1 - alpha**2) ** 0.5, rel=0.5) and gap.std() < 0.2


def test_labels_are_dropped_for_guidance() -> None:
    """About a tenth become the null class, others stay."""
    method = Denoising(tiny_unet(classes=3), build_scheduler("epsilon", "cosine"), [8])
    assert (method.null_class, method.teacher.num_classes) == (3, 3)
    labels = torch.arange(1000) % 3
    seen, _ = shown(method, Images(images(1000), class_condition(labels), 0))
    dropped = seen["labels"] == 3
    assert torch.equal(seen["labels"][~dropped], labels[~dropped]) and 60 < int(dropped.sum()) < 145
    kept = Denoising(
        tiny_unet(classes=3), build_scheduler("epsilon", "cosine"), [8], label_dropout=0.0
    )
    assert torch.equal(
        shown(kept, Images(images(1000), class_condition(labels), 0))[0]["labels"], labels
    )


def test_the_same_stream_gives_the_same_loss() -> None:
    method = Denoising(tiny_unet(), build_scheduler("v_prediction", "cosine"), [8])
    batch = Images(images(), None, 0)
    first, again, other = (shown(method, batch, seed)[1] for seed in (0, 0, 1))
    assert first == again != other


def test_sample_is_ddim() -> None:
    method = Denoising(tiny_unet(), build_scheduler("v_prediction", "linear"), [8])
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = DDIMScheduler.from_config(method.teacher.scheduler.config)
    scheduler.set_timesteps(10)
    x = noise
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(method.teacher.predict(x, float(t)), int(t), x, eta=0.0).prev_sample
    found = method.sample(noise, steps=10)
    torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-3 * float(x.abs().max()))


def test_sizes_must_fit_the_levels() -> None:
    with pytest.raises(InputError, match=r"3 levels: size 10 must be divisible by 4"):
        build_unet(10, 1, (8, 16, 16), 1)


@pytest.mark.parametrize("prediction", ["v_prediction", "flow"])
def test_lognormal_times_follow_their_law(prediction: str) -> None:
    """The drawn log(sigma / alpha) against the mixture's distribution function, computed by hand."""
    method = Denoising(tiny_unet(), build_scheduler(prediction, "linear"), [8], times="lognormal")
    schedule = method.teacher.schedule
    drawn = method._times(40_000, torch.device("cpu"), generator_for("cpu", 3))
    assert drawn.min() >= 0 and drawn.max() < schedule.train_steps
    every = schedule.snap(torch.arange(schedule.train_steps) + 0.5)
    ratios = [(s / a).log() for a, s in (schedule.alpha_sigma(t) for t in (drawn, every))]
    normal = torch.distributions.Normal(denoising.LOG_RATIO_MEAN, denoising.LOG_RATIO_STD)
    low, high = (normal.cdf(edge) for edge in (ratios[1].min(), ratios[1].max()))
    for point in (-3.0, -1.5, -0.5, 0.5, 2.0):
        at = torch.tensor(point)
        # the normal law within the schedule's range, and a quarter of uniform times
        inside = (normal.cdf(at) - low) / (high - low)
        wanted = 0.75 * inside + 0.25 * (ratios[1] <= point).float().mean()
        assert (ratios[0] <= point).float().mean() == pytest.approx(float(wanted), abs=0.02)


def test_a_size_may_come_several_times() -> None:
    method = Denoising(tiny_unet(), build_scheduler("v_prediction", "linear"), [8, 8, 4])
    sizes = [shown(method, Images(images(2), None, step))[0]["x"].shape[-1] for step in range(6)]
    assert sizes == [8, 8, 4, 8, 8, 4]
