# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Free-form deformation by cubic B-splines (Rueckert et al. 1999), as ITK's `BSplineTransform` defines it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .deformation import invert_displacement
from .sampling import full_precision, multiply_axis

__all__ = ["BSpline", "control_points"]


def control_points(shape: Sequence[int], distance: float) -> list[int]:
    """Number of control points along each axis that lie at most ``distance`` voxels apart.

    The mesh has whole cells between the first and the last voxel of an axis; a cubic spline needs three points more.
    """
    return [max(1, math.ceil((n - 1) / distance)) + 3 for n in shape]


@dataclass(frozen=True)
class BSpline:
    """Displacement of φ⁻¹, the map that resamples the moving image, as a cubic spline of coefficients.

    The field is ``[B, dim, *points]``, coefficients in voxels of the image, on the grid of `control_points`. Nothing
    keeps the map from folding but small coefficients: below 0.48 (2D), 0.40 (3D) of the distance of control points it
    is one to one (Choi and Lee 2000).

    Attributes:
        shape: spatial shape of the image.
        iterations: of the fixed point iteration that inverts it.
    """

    shape: tuple[int, ...]
    iterations: int = 30

    def displacement(self, field: Tensor, inverse: bool) -> Tensor:
        """Evaluate the spline at every voxel ``[B, dim, *shape]``, for φ⁻¹, or invert it, for φ.

        Costs one small matrix product per axis.
        """
        dense = full_precision(field)
        for axis, size in enumerate(self.shape):
            dense = multiply_axis(_basis(size, field.shape[2 + axis] - 3, field.device), dense, 2 + axis)
        return dense if inverse else invert_displacement(dense, self.iterations)


@lru_cache(maxsize=32)
def _basis(size: int, cells: int, device: torch.device) -> Tensor:
    """Weight ``[size, cells + 3]`` of every control point at every voxel; control point c lies at cell c − 1."""
    place = torch.arange(size, dtype=torch.float64) * cells / max(size - 1, 1)
    distance = (place[:, None] - (torch.arange(cells + 3, dtype=torch.float64) - 1)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp_min(0) ** 3 / 6
    return torch.where(distance < 1, near, far).to(device)
