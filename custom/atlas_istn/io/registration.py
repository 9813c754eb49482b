# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The registration of one case as its parameters: velocity field and affine map, with the geometry of both grids.

The ITK files of a case hold displacements. Statistics in the log domain need what generates these.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import InputError
from ..spatial import Transform, VelocityField, apply_affine, invert_affine, sample_displacement
from ..spatial.world import flip_points, homogeneous, transform_points
from .files import write_whole
from .itk_transforms import Points
from .outputs import atlas_grid_affine

__all__ = ["Registration", "read_registration", "write_registration"]


@dataclass(frozen=True)
class Registration:
    """The map between the worlds of atlas and subject, in LPS millimetres as ITK files and 3D Slicer have them.

    A transform that resamples the atlas onto the subject takes *subject* points to atlas points. Here a direction is
    named by where a point goes.

    Attributes:
        transform: a batch of one, in float64.
        subject_affine: voxel to RAS world map of the subject on the model's grid, ``[dim + 1, dim + 1]``.
    """

    transform: Transform
    subject_affine: npt.NDArray[np.float64]

    @property
    def dim(self) -> int:
        """2 or 3."""
        return len(self.transform.shape)

    @property
    def atlas_affine(self) -> npt.NDArray[np.float64]:
        """Voxel to RAS world map of the atlas, ``[dim + 1, dim + 1]``."""
        return atlas_grid_affine(self.transform.shape, self.transform.spacing)

    def to_subject(self, points: Points) -> Points:
        """Take points ``[N, dim]`` of the atlas to the subject by ``Φ = T ∘ φ``; LPS millimetres."""
        voxels = self._voxels(points, self.atlas_affine)
        moved = voxels + self._displacement(voxels)
        return self._world(apply_affine(self.transform.affine, moved, *self._geometry), self.subject_affine)

    def to_atlas(self, points: Points) -> Points:
        """Take points ``[N, dim]`` of the subject to the atlas by ``Φ⁻¹ = φ⁻¹ ∘ T⁻¹``; LPS millimetres."""
        voxels = self._voxels(points, self.subject_affine)
        moved = apply_affine(invert_affine(self.transform.affine), voxels, *self._geometry)
        return self._world(moved + self._displacement(moved, inverse=True), self.atlas_affine)

    def outside(self, points: Points, of_atlas: bool) -> npt.NDArray[np.bool_]:
        """Which points ``[N, dim]`` (LPS) lie more than half a voxel beyond the model's grid, ``[N]``."""
        affine = self.atlas_affine if of_atlas else self.subject_affine
        voxels = transform_points(np.linalg.inv(affine), flip_points(points))
        return np.asarray(((voxels < -0.5) | (voxels > np.asarray(self.transform.shape) - 0.5)).any(axis=1))

    def _displacement(self, voxels: Tensor, inverse: bool = False) -> Tensor:
        """Of φ, or φ⁻¹, at voxels of the image's grid."""
        deformation = cast(Tensor, self.transform.deformation(inverse))
        return sample_displacement(deformation, voxels, list(self.transform.shape))

    @property
    def _geometry(self) -> tuple[list[float], list[int]]:
        return list(self.transform.spacing), list(self.transform.shape)

    def _voxels(self, points: Points, affine: npt.NDArray[np.float64]) -> Tensor:
        """Voxel coordinates of LPS points as a grid ``[1, dim, N, 1(, 1)]``."""
        voxels = torch.from_numpy(transform_points(np.linalg.inv(affine), flip_points(points)))
        return voxels.T.reshape([1, self.dim, -1] + [1] * (self.dim - 1))

    def _world(self, voxels: Tensor, affine: npt.NDArray[np.float64]) -> Points:
        return flip_points(transform_points(affine, voxels.reshape(self.dim, -1).T.numpy()))


def write_registration(transform: Transform, subject_affine: npt.NDArray[np.floating], path: Path) -> None:
    """Write a registration as a compressed ``.npz`` file, which NumPy opens.

    Its arrays: ``velocity`` ``[dim, *half]`` in voxels of its own grid, ``affine`` ``[dim, dim + 1]`` (T, in
    millimetres about the grid's centre), ``shape`` and ``spacing`` of the grid, ``squarings``, and ``subject_affine``
    (voxel to RAS).

    Args:
        transform: a batch of one.
        subject_affine: voxel to RAS world map of the subject on the model's grid; for a 2D image also 4x4.
        path: ``.npz``.
    """
    model = transform.model
    if not isinstance(model, VelocityField):
        raise TypeError(f"expected a transform with a velocity field, found {type(model).__name__}.")
    arrays: dict[str, Any] = {
        "velocity": transform.velocity[0].detach().float().cpu().numpy(),
        "affine": transform.affine[0].detach().double().cpu().numpy(),
        "shape": np.asarray(transform.shape),
        "spacing": np.asarray(transform.spacing, dtype=np.float64),
        "squarings": np.asarray(model.squarings),
        "subject_affine": homogeneous(subject_affine, len(transform.shape)),
    }
    write_whole(path, lambda part: np.savez_compressed(part, **arrays))


def read_registration(path: str | os.PathLike[str]) -> Registration:
    """Read what `write_registration` wrote.

    Raises:
        InputError: the file is missing or no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        transform = Transform(
            torch.from_numpy(arrays["velocity"]).double()[None],
            torch.from_numpy(arrays["affine"]).double()[None],
            tuple(int(n) for n in arrays["shape"]),
            tuple(float(s) for s in arrays["spacing"]),
            VelocityField(int(arrays["squarings"])),
        )
        return Registration(transform, arrays["subject_affine"])
    except Exception as error:  # of a damaged file zipfile, zlib and NumPy complain with a dozen exceptions
        raise InputError(
            f"{path}: expected the registration that inference writes for each case, found {type(error).__name__}. Run "
            "inference again."
        ) from error
