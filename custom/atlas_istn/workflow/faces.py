# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Where the anatomy goes on beyond the model's grid: labels that touch a face of it behind which there is image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..spatial.world import homogeneous, transform_points

__all__ = ["CutFace", "cut_faces"]

_SIDES = {
    2: (("left", "right"), ("top", "bottom")),
    3: (("left", "right"), ("posterior", "anterior"), ("inferior", "superior")),
}
"""Of the picture, or of the patient: what lies at the first and at the last voxel of each axis of the grid."""
_AHEAD = 1.5  # voxels of the grid, from its outermost one to where there must be image


@dataclass(frozen=True)
class CutFace:
    """A face of the grid that labels touch.

    Attributes:
        side: ``"left"``, ``"anterior"``, …; of the picture in 2D.
        area: of the labels on it, mm² (mm in 2D).
    """

    side: str
    area: float


def cut_faces(
    labels: np.ndarray, grid_affine: np.ndarray, shape: Sequence[int], affine: np.ndarray, spacing: Sequence[float]
) -> list[CutFace]:
    """Find the faces that cut the labels.

    Args:
        labels: class indices ``[*size]`` on the model's grid, whose axes point to the right, to the front and up.
        grid_affine: voxel to RAS world map of the grid, 4x4.
        shape: voxels of the image as it is stored.
        affine: its voxel to RAS world map.
        spacing: of the grid, mm.

    Returns:
        Faces with labels on them, where the image goes on for a voxel behind.
    """
    dim = labels.ndim
    to_image = np.linalg.inv(homogeneous(np.asarray(affine, dtype=float), dim)) @ homogeneous(
        np.asarray(grid_affine, dtype=float), dim
    )
    found = []
    for axis, sides in enumerate(_SIDES[dim]):
        for last, side in enumerate(sides):
            place = labels.shape[axis] - 1 if last else 0
            voxels = np.argwhere(np.take(labels, [place], axis=axis) > 0).astype(float)
            voxels[:, axis] = place + (_AHEAD if last else -_AHEAD)
            ahead = transform_points(to_image, voxels) if len(voxels) else voxels
            inside = ((ahead >= 0) & (ahead <= np.asarray(shape) - 1)).all(axis=1)
            if inside.any():
                area = inside.sum() * float(np.prod([s for other, s in enumerate(spacing) if other != axis]))
                found.append(CutFace(side, round(float(area), 3)))
    return found
