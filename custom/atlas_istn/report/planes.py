# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Planes through a case as they are looked at: which slice, which window of it, which way up; and the map in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor

from ..io.itk_transforms import CompositeTransform

__all__ = ["Plane", "atlas_coordinates", "choose_planes"]

Picture = npt.NDArray[Any]  # [rows, columns], as displayed


@dataclass(frozen=True)
class Plane:
    """A rectangle of voxels of a volume in RAS (or of a 2D image).

    Attributes:
        name: ``"axial"``, ``"coronal"``, ``"sagittal"``, or empty in 2D.
        across: array axis that runs from left to right.
        down: array axis that runs from top to bottom.
        flipped: whether these axes run backwards on the screen, (across, down).
        window: range of voxels along each array axis; one voxel along the axis that is looked along.
        spacing: millimetres per voxel, (across, down).
    """

    name: str
    across: int
    down: int
    flipped: tuple[bool, bool]
    window: tuple[tuple[int, int], ...]
    spacing: tuple[float, float]

    @property
    def marks(self) -> tuple[str, str]:
        """What lies at the left and at the top: the radiological convention."""
        return {"axial": ("R", "A"), "coronal": ("R", "S"), "sagittal": ("A", "S")}.get(self.name, ("", ""))

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in millimetres."""
        (left, right), (top, bottom) = self.window[self.across], self.window[self.down]
        return (right - left) * self.spacing[0], (bottom - top) * self.spacing[1]

    def focus(self, plane: Picture, margin: float = 0.12) -> tuple[float, float, float, float]:
        """Left, top, width and height in mm of what is not zero in a plane, with a margin; else the whole plane."""
        inside = np.argwhere(plane)[:, ::-1]
        if not inside.size:
            return 0.0, 0.0, *self.size
        low, high = inside.min(axis=0) * self.spacing, (inside.max(axis=0) + 1) * self.spacing
        around = margin * (high - low).max()
        (left, top), (right, bottom) = np.maximum(low - around, 0), np.minimum(high + around, self.size)
        return float(left), float(top), float(right - left), float(bottom - top)

    def cut(self, volume: npt.NDArray[Any]) -> Picture:
        """The plane ``[rows, columns]`` of a volume ``[*shape]``."""
        return self.turn(volume[tuple(slice(*bounds) for bounds in self.window)])

    def turn(self, window: npt.NDArray[Any]) -> Picture:
        """Bring voxels of the window ``[*window]`` into the order of the screen."""
        normal = tuple(axis for axis in range(window.ndim) if axis not in (self.across, self.down))
        plane = window.transpose(self.down, self.across, *normal).reshape(
            window.shape[self.down], window.shape[self.across]
        )
        return plane[:: -1 if self.flipped[1] else 1, :: -1 if self.flipped[0] else 1]


def choose_planes(labels: MetaTensor, margin: float = 0.4) -> list[Plane]:
    """The planes that show the labels of a case best.

    Args:
        labels: ``[1, *shape]``, in 3D with axes in RAS; non-zero wherever any labelmap of the case is.
        margin: what is shown around the labels, as a fraction of their extent.

    Returns:
        The axial, coronal and sagittal plane that cut the most labelled voxels; of a 2D image the image.
    """
    mask = np.asarray(labels[0] > 0)
    spacing = [float(size) for size in labels.pixdim[: mask.ndim]]
    box = [_bounds(mask, axis, margin) for axis in range(mask.ndim)]
    if mask.ndim == 2:
        return [Plane("", 0, 1, (False, False), tuple(box), (spacing[0], spacing[1]))]
    planes = []
    for name, normal, across, down, flipped in (
        ("axial", 2, 0, 1, (True, True)),
        ("coronal", 1, 0, 2, (True, True)),
        ("sagittal", 0, 1, 2, (True, True)),
    ):
        counts = mask.sum(axis=(across, down))
        best = int(counts.argmax()) if counts.any() else mask.shape[normal] // 2
        window = [(best, best + 1) if axis == normal else bounds for axis, bounds in enumerate(box)]
        planes.append(Plane(name, across, down, flipped, tuple(window), (spacing[across], spacing[down])))
    return planes


def _bounds(mask: npt.NDArray[np.bool_], axis: int, margin: float) -> tuple[int, int]:
    others = tuple(other for other in range(mask.ndim) if other != axis)
    found = np.flatnonzero(mask.any(axis=others))
    if not found.size:
        return 0, mask.shape[axis]
    around = int(np.ceil(margin * (found[-1] - found[0] + 1)))
    return max(0, int(found[0]) - around), min(mask.shape[axis], int(found[-1]) + 1 + around)


def atlas_coordinates(
    transform: CompositeTransform, affine: npt.NDArray[Any], plane: Plane
) -> tuple[Picture, Picture, Picture]:
    """Where the points of a plane lie in the atlas, and how the map changes volume there.

    Args:
        transform: of LPS points, subject to atlas, Φ⁻¹.
        affine: voxel to RAS world map of the subject, 4x4.
        plane: of the subject.

    Returns:
        Atlas coordinates in mm along the axes that run across and down, and the determinant of Φ⁻¹'s Jacobian: volume
        in the atlas per volume in the subject. Each ``[rows, columns]``.
    """
    dim = len(plane.window)
    # One voxel more on each side, for central differences.
    start = np.array([first - 1 for first, _ in plane.window])
    size = [last - first + 2 for first, last in plane.window]
    lps = np.diag([-1.0, -1.0, 1.0])[:dim, :dim]
    matrix = lps @ affine[:dim, :dim]
    field = _sample(transform, matrix, matrix @ start + lps @ affine[:dim, 3], size)
    axes = range(1, dim + 1)
    jacobian = np.stack([np.gradient(field, axis=axis) for axis in axes], axis=1)  # [component, axis, *size]
    determinant = np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1))) / np.linalg.det(matrix)
    inner = (slice(1, -1),) * dim
    return (
        plane.turn(field[plane.across][inner]),
        plane.turn(field[plane.down][inner]),
        plane.turn(determinant[inner]),
    )


def _sample(
    transform: CompositeTransform, matrix: npt.NDArray[Any], origin: npt.NDArray[Any], size: list[int]
) -> npt.NDArray[np.float64]:
    """Points ``[dim, *size]`` to which a transform takes the voxels of a grid, all in LPS mm."""
    dim = len(size)
    voxels = np.indices(size, dtype=np.float64).reshape(dim, -1).T
    return transform(voxels @ matrix.T + origin).T.reshape(dim, *size)
