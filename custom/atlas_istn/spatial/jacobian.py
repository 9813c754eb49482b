# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Derivatives of displacement fields: local volume change."""

from __future__ import annotations

import torch
from torch import Tensor

from .sampling import full_precision

__all__ = ["displacement_gradient", "jacobian_determinant"]


def displacement_gradient(displacement: Tensor) -> Tensor:
    """Spatial derivatives of a displacement field by central differences, one-sided at the border.

    Args:
        displacement: ``[B, dim, *shape]`` in voxels.

    Returns:
        ``[B, dim, dim, *shape]``, entry [i, j] = ∂u_i/∂p_j, voxel per voxel.
    """
    axes = tuple(range(2, displacement.ndim))
    return torch.stack(torch.gradient(displacement, dim=axes), dim=2)


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """Determinant of the Jacobian of ``p + u(p)`` at every voxel, the border included; ≤ 0 marks folding.

    Args:
        displacement: ``[B, dim, *shape]`` in voxels.

    Returns:
        ``[B, *shape]``.
    """
    dim = displacement.shape[1]
    jacobian = displacement_gradient(full_precision(displacement)).movedim((1, 2), (-2, -1))
    return torch.linalg.det(jacobian + torch.eye(dim, device=displacement.device))
