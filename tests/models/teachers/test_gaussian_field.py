"""The Gaussian field: its denoiser is the posterior mean at every size, by plain linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.teachers.gaussian_field import FieldTeacher, GaussianField, power_law


def block_means(size: int, factor: int) -> torch.Tensor:
    """The means over blocks as a matrix, entry by entry."""
    small = size // factor
    matrix = torch.zeros(small**2, size**2, dtype=torch.float64)
    for y in range(size):
        for x in range(size):
            matrix[(y // factor) * small + x // factor, y * size + x] = 1 / factor**2
    return matrix


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_means_over_blocks_are_a_field_of_the_same_kind(factor: int) -> None:
    field, matrix = power_law(8), block_means(8, factor)
    expected = matrix @ field.covariance() @ matrix.T
    torch.testing.assert_close(field.means(factor).covariance(), expected, rtol=1e-10, atol=1e-12)


def test_power_law() -> None:
    """Variance of a pixel, and the slope where 1 does not matter."""
    field = power_law(64, exponent=3.0, variance=0.5)
    assert float(power_law(8, 3.0, 0.5).covariance()[0, 0]) == pytest.approx(0.5)
    assert field.power[0, 10] / field.power[0, 20] == pytest.approx((401 / 101) ** 1.5)
    assert field.power[3, 5] == field.power[5, 3] == field.power[-3, 5]


@pytest.mark.parametrize("size", [8, 4])
def test_the_teacher_is_the_posterior_mean(size: int) -> None:
    """C a (a^2 C + s^2)^-1 x for the flow teacher, at its own size and at half of it."""
    field = power_law(8)
    teacher, own = FieldTeacher(field), field if size == 8 else field.means(2)
    x = torch.randn(5, 1, size, size, generator=torch.Generator().manual_seed(0)).double()
    C = own.covariance()
    for sigma in (0.9, 0.5, 0.1):
        alpha = 1 - sigma
        noisy = alpha**2 * C + sigma**2 * torch.eye(size**2, dtype=torch.float64)
        expected = x.flatten(1) @ torch.linalg.solve(noisy, alpha * C)
        found = teacher.denoise(x, 1000 * sigma).flatten(1)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert isinstance(own, GaussianField) and np.all(own.power > 0)
