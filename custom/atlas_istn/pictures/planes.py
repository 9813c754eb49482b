# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The one way in which pictures cut a volume: which slices, which window of them, which way up.

Volumes have their axes towards right, anterior and superior (RAS). Planes are shown as radiologists look at them: the
patient's right on the left of axial and coronal planes, anterior on top of axial planes and on the left of sagittal
ones, superior on top of the others. A 2D image is shown as its file has it, with y downwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..spatial.world import LPS, homogeneous, transform_points

__all__ = ["MARGIN", "Picture", "Plane", "atlas_coordinates", "choose_planes", "middle_planes"]

Picture = npt.NDArray[Any]  # [rows, columns], as displayed
Window = tuple[tuple[int, int], ...]  # of each array axis: the first voxel, and that behind the last one

MARGIN = 0.4  # shown around the labels of a case, of their extent

ANATOMICAL = (("axial", 2, "RLAP"), ("coronal", 1, "RLSI"), ("sagittal", 0, "APSI"))
"""Name of a plane, axis of the volume that it lies across, what lies at its left, right, top and bottom."""


@dataclass(frozen=True)
class Plane:
    """A rectangle of voxels of a volume in RAS, or of a 2D image.

    Attributes:
        name: ``"axial"``, ``"coronal"``, ``"sagittal"``, or empty in 2D.
        across: array axis that runs from left to right.
        down: array axis that runs from top to bottom.
        letters: of what lies at the left, right, top and bottom; empty in 2D, where nobody knows.
        window: range of voxels along each array axis; one voxel along the axis that is looked along.
        spacing: millimetres per voxel, (across, down).
    """

    name: str
    across: int
    down: int
    letters: str
    window: Window
    spacing: tuple[float, float]

    @property
    def backwards(self) -> bool:
        """Whether the array axes run from right to left and upwards: RAS does, the pixels of a file do not."""
        return bool(self.name)

    @property
    def index(self) -> int:
        """Of the slice; 0 in 2D."""
        return next((first for axis, (first, _) in enumerate(self.window) if axis not in (self.across, self.down)), 0)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in millimetres."""
        (left, right), (top, bottom) = self.window[self.across], self.window[self.down]
        return (right - left) * self.spacing[0], (bottom - top) * self.spacing[1]

    @property
    def aspect(self) -> float:
        """Height of a pixel by its width."""
        return self.spacing[1] / self.spacing[0]

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
        """The plane ``[..., rows, columns]`` of a volume ``[..., *shape]``."""
        window: Any = (..., *(slice(*bounds) for bounds in self.window))
        return self.turn(volume[window])

    def turn(self, window: npt.NDArray[Any]) -> Picture:
        """Bring voxels of the window ``[..., *window]`` into the order of the screen."""
        dim = len(self.window)
        lead = window.ndim - dim
        plane = np.moveaxis(window, (lead + self.down, lead + self.across), (-2, -1))
        only: Any = (*[slice(None)] * lead, *[0] * (dim - 2))  # of the axis that is looked along
        plane = plane[only]
        return plane[..., ::-1, ::-1] if self.backwards else plane


def choose_planes(
    mask: npt.NDArray[Any], spacing: Sequence[float], margin: float | None = None, middle: bool = False
) -> list[Plane]:
    """Choose the planes that show the labels of a case best.

    Args:
        mask: ``[*shape]``, in 3D with axes in RAS; non-zero wherever a label is.
        spacing: millimetres per voxel along each axis.
        margin: what is shown around the labels, as a fraction of their extent; without it all is shown.
        middle: cut through the middle of the labels' extent instead of where most voxels are labelled.

    Returns:
        The axial, coronal and sagittal plane that cut the most labelled voxels, the middle ones where nothing is
        labelled; of a 2D image the image.
    """
    inside = np.asarray(mask) > 0
    box = [(0, n) if margin is None else _bounds(inside, axis, margin) for axis, n in enumerate(inside.shape)]
    size = [float(length) for length in spacing[: inside.ndim]]
    if inside.ndim == 2:
        return [Plane("", 0, 1, "", tuple(box), (size[0], size[1]))]
    planes = []
    for name, normal, letters in ANATOMICAL:
        across, down = (axis for axis in range(3) if axis != normal)
        counts = inside.sum(axis=(across, down))
        best = int(counts.argmax())
        if middle or not counts.any():
            best = (sum(_bounds(inside, normal, 0.0)) - 1) // 2
        window = [(best, best + 1) if axis == normal else bounds for axis, bounds in enumerate(box)]
        planes.append(Plane(name, across, down, letters, tuple(window), (size[across], size[down])))
    return planes


def middle_planes(shape: Sequence[int], spacing: Sequence[float]) -> list[Plane]:
    """Return the whole planes through the middle of a grid: they do not depend on what is in it."""
    return choose_planes(np.zeros(tuple(shape), dtype=bool), spacing)


def _bounds(mask: npt.NDArray[np.bool_], axis: int, margin: float) -> tuple[int, int]:
    others = tuple(other for other in range(mask.ndim) if other != axis)
    found = np.flatnonzero(mask.any(axis=others))
    if not found.size:
        return 0, mask.shape[axis]
    around = int(np.ceil(margin * (found[-1] - found[0] + 1)))
    return max(0, int(found[0]) - around), min(mask.shape[axis], int(found[-1]) + 1 + around)


def atlas_coordinates(
    to_atlas: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]], affine: npt.NDArray[Any], plane: Plane
) -> tuple[Picture, Picture, Picture]:
    """Sample where the points of a plane lie in the atlas, and how the map changes volume there.

    Args:
        to_atlas: map ``Φ⁻¹`` of LPS points ``[N, dim]`` in mm, subject to atlas.
        affine: voxel to RAS world map of the subject, 4x4.
        plane: of the subject.

    Returns:
        Atlas coordinates in mm along the axes that run across and down, and the determinant of Φ⁻¹'s Jacobian: volume
        in the atlas per volume in the subject. Each ``[rows, columns]``.
    """
    dim = len(plane.window)
    grown = replace(plane, window=tuple((first - 1, last + 1) for first, last in plane.window))  # for differences
    voxels = np.stack(np.meshgrid(*(np.arange(*bounds) for bounds in grown.window), indexing="ij")).astype(float)
    grid = homogeneous(LPS @ affine, dim)
    field = to_atlas(transform_points(grid, voxels.reshape(dim, -1).T)).T.reshape(voxels.shape)
    axes = range(1, dim + 1)
    jacobian = np.stack([np.gradient(field, axis=axis) for axis in axes], axis=1)  # [component, axis, *window]
    determinant = np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1))) / np.linalg.det(grid)
    inner = (slice(1, -1),) * dim
    return (
        plane.turn(field[plane.across][inner]),
        plane.turn(field[plane.down][inner]),
        plane.turn(determinant[inner]),
    )
