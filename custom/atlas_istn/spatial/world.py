# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Points and affine maps in the world, in millimetres: RAS as in MONAI and NIfTI, LPS as in ITK and DICOM."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["LPS", "flip_points", "homogeneous", "transform_points"]

Array = npt.NDArray[np.floating]

LPS: npt.NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Homogeneous map from RAS to LPS, and back."""


def flip_points(points: Array) -> npt.NDArray[np.float64]:
    """RAS points ``[..., dim]`` in LPS, or LPS points in RAS."""
    return np.asarray(points * LPS.diagonal()[: points.shape[-1]])


def transform_points(affine: Array, points: Array) -> npt.NDArray[np.float64]:
    """Map points ``[N, dim]`` by a homogeneous matrix ``[dim + 1, dim + 1]``."""
    return np.asarray(points @ affine[:-1, :-1].T + affine[:-1, -1])


def homogeneous(affine: Array, dim: int) -> npt.NDArray[np.float64]:
    """Cut or fill a homogeneous matrix to ``[dim + 1, dim + 1]``: the first axes, and the translation."""
    result = np.eye(dim + 1)
    rank = min(dim, len(affine) - 1)
    result[:rank, :rank], result[:rank, dim] = affine[:rank, :rank], affine[:rank, -1]
    return result
