# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Penalties of displacement fields, per case; dimensionless, whatever the proportions of the voxels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["mean_squared_gradient"]


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
    size = torch.tensor(spacing, device=displacement.device, dtype=displacement.dtype)
    total = torch.zeros(len(displacement), device=displacement.device, dtype=displacement.dtype)
    for axis, step in enumerate(size):
        squares = displacement.diff(dim=2 + axis).square().flatten(2).mean(dim=2)
        total = total + squares @ (size / step).square()
    return total
