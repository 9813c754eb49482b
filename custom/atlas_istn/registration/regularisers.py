# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Penalties of displacement fields, per case; dimensionless, whatever the proportions of the voxels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..spatial import per_axis

__all__ = ["bending_energy", "mean_squared_gradient"]


def mean_squared_gradient(displacement: Tensor, spacing: Sequence[float]) -> Tensor:
    """Smoothness penalty ‖∇u‖² of Atlas-ISTN, eq. (13), by forward differences.

    The mean over voxels of the squared Frobenius norm of the displacement's Jacobian, ``∂u_i/∂x_j`` in millimetres per
    millimetre: its weight λ depends neither on the matrix size nor on which axis has the thicker voxels.

    Args:
        displacement: ``[B, dim, *shape]`` in voxels.
        spacing: size of a voxel along each axis; only the proportions count.

    Returns:
        ``[B]``.
    """
    size = per_axis(list(spacing), displacement)[:, 0]
    total = displacement.new_zeros(len(displacement))
    for axis, step in enumerate(size):
        squares = displacement.diff(dim=2 + axis).square().flatten(2).mean(dim=2)
        total = total + (squares * (size / step).square()).sum(
            dim=1
        )  # a product would be half precision under autocast
    return total


def bending_energy(displacement: Tensor, spacing: Sequence[float]) -> Tensor:
    """Bending energy of MAS-refine, eq. (6): mean squared Frobenius norm of the Hessian, by central differences.

    ``∂²u_i/∂x_j∂x_k`` times the mean size of a voxel (geometric), so that voxels of equal sides count in voxel units:
    the paper's γ of 20,000 on normalised coordinates is 20,000 (2 / (N − 1))² here. The voxels at the border have no
    second differences and are left out. `monai.losses.BendingEnergyLoss` knows no spacing and no cases.

    Args:
        displacement: ``[B, dim, *shape]`` in voxels, at least three along each axis.
        spacing: size of a voxel along each axis; only the proportions count.

    Returns:
        ``[B]``.
    """
    dim = displacement.shape[1]
    size = torch.tensor(spacing, device=displacement.device, dtype=displacement.dtype)
    mean_size = size.log().mean().exp()
    inner = (slice(None), slice(None), *[slice(1, -1)] * dim)
    total = torch.zeros(len(displacement), device=displacement.device, dtype=displacement.dtype)
    for j in range(dim):
        for k in range(j, dim):
            second = _second_difference(displacement, 2 + j, 2 + k)[inner]
            weights = (size * mean_size / (size[j] * size[k])).square() * (1.0 if j == k else 2.0)
            total = total + (second.square().flatten(2).mean(dim=2) * weights).sum(dim=1)
    return total


def _second_difference(field: Tensor, first: int, second: int) -> Tensor:
    """``∂²/∂x_j∂x_k`` by central differences, valid inside; of the shape of the field."""
    if first == second:
        return field.roll(-1, first) - 2 * field + field.roll(1, first)
    return (
        field.roll((-1, -1), (first, second))
        - field.roll((-1, 1), (first, second))
        - field.roll((1, -1), (first, second))
        + field.roll((1, 1), (first, second))
    ) / 4
