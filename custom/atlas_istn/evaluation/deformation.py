# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""How regular a transform is: local volume change, folds, and how well both directions undo each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ..io.itk_transforms import Points
from ..io.warping import PointMap
from ..spatial import Transform
from ..spatial.world import flip_points, homogeneous, transform_points

__all__ = ["deformation_figures", "inverse_error"]

_LEAST = 1e-9  # of which the logarithm is taken in place of that of smaller determinants
_OFFSET = 3.0  # that Learn2Reg's evaluation adds to determinants, which have their 1 already
_MOST = 20_000  # points at which an inverse is judged


def deformation_figures(transform: Transform) -> dict[str, float]:
    """Figures of the Jacobian determinant of Φ⁻¹ over the grid of the fixed image.

    Args:
        transform: a batch of one.

    Returns:
        ``min_jacobian``; ``folded_fraction`` of voxels where it is not positive; ``log_jacobian_sd``, the standard
        deviation of its logarithm; ``log_jacobian_sd_learn2reg``, as that challenge computes it, with 3 added to the
        determinant, which makes the figure about a quarter.
    """
    determinant = transform.jacobian_determinant().double()

    def spread(values: torch.Tensor) -> float:
        return float(values.clamp_min(_LEAST).log().std(correction=0))

    return {
        "min_jacobian": float(determinant.min()),
        "folded_fraction": float((determinant <= 0).double().mean()),
        "log_jacobian_sd": spread(determinant),
        "log_jacobian_sd_learn2reg": spread(determinant + _OFFSET),
    }


def inverse_error(
    there: PointMap, back: PointMap, affine: npt.NDArray[np.floating], shape: tuple[int, ...]
) -> dict[str, float]:
    """How far points of a grid are from where they began when a map and its inverse have moved them.

    Args:
        there: map of LPS points in millimetres.
        back: its inverse.
        affine: voxel to RAS world map of the grid, ``[dim + 1, dim + 1]``, in 2D also 4x4.
        shape: of the grid; up to 20,000 of its voxels, evenly spread, are looked at.

    Returns:
        ``inverse_error_mean`` and ``inverse_error_max``.
    """
    voxels = np.indices(shape, dtype=np.float64).reshape(len(shape), -1).T
    chosen = voxels[:: max(1, len(voxels) // _MOST)]
    points: Points = flip_points(transform_points(homogeneous(affine, len(shape)), chosen))
    errors = np.linalg.norm(back(there(points)) - points, axis=1)
    return {"inverse_error_mean": float(errors.mean()), "inverse_error_max": float(errors.max())}
