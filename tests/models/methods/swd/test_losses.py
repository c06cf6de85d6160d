"""SwD's losses against plain second implementations, by gradient checks, and by what they must be
zero on.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models.methods.losses import rbf_mmd
from models.methods.swd.losses import (
    class_mmd,
    discriminator_loss,
    dmd_loss,
    generator_gan_loss,
    image_mmd,
    linear_mmd,
)


def draw(*shape: int, seed: int = 0, grad: bool = False) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.requires_grad_(grad)


def test_dmd_gradient_is_the_normalised_direction() -> None:
    x0, real, fake = draw(3, 2, 4, 4, grad=True), draw(3, 2, 4, 4, seed=1), draw(3, 2, 4, 4, seed=2)
    loss = dmd_loss(x0, real, fake)
    loss.backward()
    x, r, f = (v.detach().numpy() for v in (x0, real, fake))
    direction = np.stack([(f[k] - r[k]) / np.abs(x[k] - r[k]).mean() for k in range(3)])
    assert np.allclose(x0.grad.numpy(), direction / x.size, atol=1e-12)  # type: ignore[union-attr]
    assert float(loss.detach()) == pytest.approx(0.5 * (direction**2).mean())


def test_dmd_vanishes_where_fake_and_teacher_agree_and_survives_a_perfect_student() -> None:
    x0, real = draw(2, 1, 4, 4, grad=True), draw(2, 1, 4, 4, seed=1)
    dmd_loss(x0, real, real).backward()
    assert torch.count_nonzero(x0.grad) == 0  # type: ignore[arg-type]
    same = real.clone().requires_grad_(True)
    dmd_loss(same, real, real + 1e-9).backward()
    assert torch.isfinite(same.grad).all() and same.grad.abs().max() < 1e-2  # type: ignore[union-attr]


def test_dmd_is_computed_in_float32_from_half_precision() -> None:
    x0, real = (
        torch.full((1, 1, 2, 2), 1e-4, dtype=torch.float16),
        torch.zeros(1, 1, 2, 2, dtype=torch.float16),
    )
    loss = dmd_loss(x0, real, torch.full_like(real, 1e-4))
    assert loss.dtype == torch.float32 and float(loss) == pytest.approx(0.5, rel=1e-3)


def test_gan_losses_are_softplus() -> None:
    real, fake = draw(6, grad=True), draw(6, seed=1, grad=True)
    r, f = real.detach().numpy(), fake.detach().numpy()
    both = np.log1p(np.exp(f)).mean() + np.log1p(np.exp(-r)).mean()
    assert float(discriminator_loss(real, fake).detach()) == pytest.approx(both, rel=1e-6)
    assert float(generator_gan_loss(fake).detach()) == pytest.approx(
        np.log1p(np.exp(-f)).mean(), rel=1e-6
    )
    (pull,) = torch.autograd.grad(generator_gan_loss(fake), fake)
    assert (pull < 0).all()  # the student raises its logits, the discriminator lowers them
    (push,) = torch.autograd.grad(discriminator_loss(real, fake), fake)
    assert (push > 0).all()


def test_linear_mmd_by_hand_and_by_gradient() -> None:
    x, y = draw(2, 5, 3, grad=True), draw(2, 5, 3, seed=1)
    gap = x.detach().numpy().mean(1) - y.numpy().mean(1)
    assert float(linear_mmd(x, y, 0.1).detach()) == pytest.approx(
        (np.sqrt(gap**2 + 0.01) - 0.1).mean(), rel=1e-9
    )
    assert torch.autograd.gradcheck(lambda v: linear_mmd(v, y, 0.1), (x,))
    assert float(linear_mmd(y, y[:, torch.randperm(5)])) == pytest.approx(0, abs=1e-12)  # no order


def kernel_sum(x: np.ndarray, y: np.ndarray, bandwidths: tuple[float, ...]) -> float:
    """Unbiased MMD^2 with loops."""

    def d2(a: np.ndarray, b: np.ndarray) -> float:
        return float(((a - b) ** 2).sum())

    n = len(x)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    values = sorted(d2(y[i], y[j]) for i, j in pairs)
    scale = values[(len(values) - 1) // 2]
    total = 0.0
    for b in bandwidths:
        k = lambda u, v: np.exp(-d2(u, v) / (2 * b**2 * scale))  # noqa: B023, E731
        total += sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs) / (n * (n - 1))
        total -= 2 * sum(k(u, v) for u in x for v in y) / n**2
    return total / len(bandwidths)


def test_image_mmd_is_the_mean_over_images() -> None:
    x, y = draw(3, 6, 2, grad=True), draw(3, 6, 2, seed=1)
    wanted = np.mean(
        [kernel_sum(a, b, (0.5, 2.0)) for a, b in zip(x.detach().numpy(), y.numpy(), strict=True)]
    )
    assert float(image_mmd(x, y, (0.5, 2.0)).detach()) == pytest.approx(wanted, rel=1e-6)
    assert torch.autograd.gradcheck(lambda v: image_mmd(v, y, (1.0,)), (x,), atol=1e-4)


def test_class_mmd_compares_within_classes() -> None:
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 2])
    x, y = draw(7, 3), draw(7, 3, seed=1)
    zero, one = labels == 0, labels == 1
    wanted = (
        3 * rbf_mmd(x[zero], y[zero], (1.0,)) + 3 * rbf_mmd(x[one], y[one], (1.0,))
    ) / 6  # 2 comes once
    assert float(class_mmd(x, y, labels, (1.0,))) == pytest.approx(float(wanted), rel=1e-9)
    assert float(class_mmd(x, y, None, (1.0,))) == pytest.approx(
        float(rbf_mmd(x, y, (1.0,))), rel=1e-9
    )
    for few in (torch.arange(7), torch.tensor([0, 0, 1, 2, 3, 4, 5])):  # a pair by chance
        assert float(class_mmd(x, y, few, (1.0,))) == pytest.approx(
            float(rbf_mmd(x, y, (1.0,))), rel=1e-9
        )


def test_class_mmd_of_rows_that_are_more_or_less_near() -> None:
    labels, x, y = torch.tensor([0, 1, 0, 1, 1, 0]), draw(6, 3), draw(6, 3, seed=1)
    near = draw(6, 6, seed=2).abs()
    parts = []
    for rows in (torch.tensor([0, 2, 5]), torch.tensor([1, 3, 4])):
        own = near[rows][:, rows]
        parts.append(float(rbf_mmd(x[rows], y[rows], (1.0,), closeness=own)))
    found = float(class_mmd(x, y, labels, (1.0,), near))
    assert found == pytest.approx(sum(parts) / 2, rel=1e-9)
    whole = float(rbf_mmd(x, y, (1.0,), closeness=near))
    assert float(class_mmd(x, y, None, (1.0,), near)) == pytest.approx(whole, rel=1e-9)
    assert found != pytest.approx(float(class_mmd(x, y, labels, (1.0,))), rel=1e-3)


def test_class_mmd_sees_classes_swapped_that_the_whole_batch_hides() -> None:
    labels = torch.arange(64) % 2
    y = 0.1 * draw(64, 2) + 4.0 * labels[:, None]
    swapped = 0.1 * draw(64, 2, seed=1) + 4.0 * (1 - labels[:, None])
    assert abs(float(class_mmd(swapped, y, None, (1.0,)))) < 0.05
    assert float(class_mmd(swapped, y, labels, (1.0,))) > 0.5
