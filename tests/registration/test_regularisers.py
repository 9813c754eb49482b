# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.losses import BendingEnergyLoss

from atlas_istn.registration.regularisers import bending_energy, mean_squared_gradient
from atlas_istn.spatial import identity_grid

SHAPE = (12, 9, 8)


@pytest.mark.parametrize(("coarse", "fine"), [(33, 65), (40, 100)])
def test_penalty_does_not_depend_on_the_matrix_size(dim: int, coarse: int, fine: int) -> None:
    """One field over one extent, sampled on two grids."""

    def penalty(size: int) -> torch.Tensor:
        position = identity_grid([size] * dim, torch.device("cpu")).double() / (size - 1)
        waves = torch.sin(2 * np.pi * position.roll(1, dims=1)) * torch.cos(np.pi * position)
        return mean_squared_gradient(0.05 * waves * (size - 1), [1.0] * dim)

    if dim == 3:
        coarse, fine = coarse // 2, fine // 2
    # Differences over a wave of n voxels are off by (2π / n)² / 24 and the borders count half: 3 % at 16 voxels.
    torch.testing.assert_close(penalty(coarse), penalty(fine), rtol=0.05, atol=0)


def test_penalty_of_a_linear_field_is_its_squared_norm(dim: int) -> None:
    matrix = torch.randn(2, dim, dim, dtype=torch.float64)
    grid = identity_grid(list(SHAPE[:dim]), matrix.device).double()
    penalty = mean_squared_gradient(torch.einsum("bij,j...->bi...", matrix, grid[0]), [2.0] * dim)
    torch.testing.assert_close(penalty, matrix.square().sum(dim=(1, 2)))
    assert mean_squared_gradient(torch.full((1, dim, *SHAPE[:dim]), 3.0), [1.0] * dim) == 0


def test_penalty_is_in_millimetres_per_millimetre(dim: int) -> None:
    """A linear map of millimetres costs the same on voxels of any proportions, and sizes as such do not count."""
    matrix = torch.randn(1, dim, dim, dtype=torch.float64)
    size = torch.tensor([2.25, 2.25, 6.0][3 - dim :], dtype=torch.float64)
    in_voxels = matrix * size / size[:, None]
    grid = identity_grid(list(SHAPE[:dim]), matrix.device).double()
    displacement = torch.einsum("bij,j...->bi...", in_voxels, grid[0])
    for scale in (1.0, 10.0):
        penalty = mean_squared_gradient(displacement, (scale * size).tolist())
        torch.testing.assert_close(penalty, matrix.square().sum(dim=(1, 2)))


def test_gradients_are_right(dim: int) -> None:
    displacement = (0.2 * torch.randn(2, dim, *(4, 3, 3)[:dim], dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: mean_squared_gradient(u, [1.0, 2.0, 3.0][:dim]), (displacement,))
    assert torch.autograd.gradcheck(lambda u: bending_energy(u, [1.0, 2.0, 3.0][:dim]), (displacement,))


def test_bending_of_a_quadratic_field_is_that_of_monai(dim: int) -> None:
    """Differences of either kind are exact for second powers; MONAI averages over components, the paper sums them."""
    shape = SHAPE[:dim]
    grid = identity_grid(list(shape), torch.device("cpu")).double()
    hessian = torch.randn(dim, dim, dim, dtype=torch.float64)
    field = torch.einsum("ijk,bj...,bk...->bi...", hessian, grid, grid)
    torch.testing.assert_close(bending_energy(field, [1.0] * dim)[0], dim * BendingEnergyLoss()(field))
    symmetric = (hessian + hessian.mT).square().sum()
    torch.testing.assert_close(bending_energy(field, [3.0] * dim)[0], symmetric)


def test_an_affine_field_does_not_bend(dim: int) -> None:
    grid = identity_grid(list(SHAPE[:dim]), torch.device("cpu")).double()
    field = torch.einsum("ij,bj...->bi...", torch.randn(dim, dim, dtype=torch.float64), grid)
    torch.testing.assert_close(bending_energy(field, [1.0, 2.0, 5.0][:dim]), torch.zeros(1, dtype=torch.float64))
