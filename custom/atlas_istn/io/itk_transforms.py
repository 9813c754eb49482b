# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Spatial maps as ITK transform files, which ITK, SimpleITK, ANTs and 3D Slicer read.

An ITK transform maps the *points* of the output grid to the points where the input is sampled. A case has two maps:

- ``Φ⁻¹ = φ⁻¹ ∘ T⁻¹``, subject points to atlas points: resamples the atlas onto the subject; the affine acts first;
- ``Φ = T ∘ φ``, atlas points to subject points: resamples the subject onto the atlas; the affine acts last.

Both displacements live on the atlas grid. `composite_transform` takes RAS millimetres; the transforms map LPS
millimetres, as in the file. They are written and read without ITK, whose Python modules take seconds to load.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
import numpy.typing as npt
import torch

from ..errors import InputError
from ..spatial import sample_displacement
from ..spatial.world import LPS, homogeneous, transform_points
from .files import write_whole

__all__ = [
    "AffineMap",
    "CompositeTransform",
    "DisplacementField",
    "Points",
    "affine_transform",
    "composite_transform",
    "read_transform",
    "write_transform",
]

Array = npt.NDArray[np.floating]
Points = npt.NDArray[np.float64]  # [N, dim]

# Names in the file
_GROUP = "TransformGroup"
_TYPE = "TransformType"
_FIXED = "TransformFixedParameters"
_PARAMETERS = "TransformParameters"
_CHUNK = 2**20  # numbers that are compressed together, as in ITK
_COMPRESSION = {"compression": "gzip", "compression_opts": 1}  # with shuffled bytes, more gains 1 % and takes longer


@dataclass(frozen=True)
class AffineMap:
    """An affine map of LPS points in mm.

    Attributes:
        matrix: homogeneous, ``[dim + 1, dim + 1]``.
    """

    kind: ClassVar = "AffineTransform"

    matrix: npt.NDArray[np.float64]

    @property
    def dim(self) -> int:
        """2 or 3."""
        return len(self.matrix) - 1

    def __call__(self, points: Points) -> Points:
        """Map points ``[N, dim]``."""
        return transform_points(self.matrix, points)

    def parameters(self) -> tuple[Array, Array]:
        """ITK's fixed parameters, the centre, and parameters: matrix and translation."""
        matrix, translation = self.matrix[:-1, :-1], self.matrix[:-1, -1]
        return np.zeros(self.dim), np.concatenate([matrix.ravel(), translation])

    @classmethod
    def of(cls, fixed: Array, parameters: Array) -> AffineMap:
        """The map that has these parameters in ITK."""
        dim = len(fixed)
        matrix = np.eye(dim + 1)
        matrix[:dim, :dim] = parameters[: dim * dim].reshape(dim, dim)
        matrix[:dim, dim] = parameters[dim * dim :] + fixed - matrix[:dim, :dim] @ fixed
        return cls(matrix)


@dataclass(frozen=True)
class DisplacementField:
    """A map that moves LPS points by the vectors of a grid, in mm, with linear interpolation.

    Attributes:
        vectors: ``[dim, *shape]``; components along the axes of space.
        grid: voxel to LPS map of the grid, ``[dim + 1, dim + 1]``.
    """

    kind: ClassVar = "DisplacementFieldTransform"

    vectors: Array
    grid: npt.NDArray[np.float64]

    @property
    def dim(self) -> int:
        """2 or 3."""
        return len(self.vectors)

    def __call__(self, points: Points) -> Points:
        """Map points ``[N, dim]``; as in ITK, those more than half a voxel beyond the grid stay where they are."""
        dim = self.dim
        voxels = transform_points(np.linalg.inv(self.grid), points)
        at = torch.from_numpy(voxels.T).reshape([1, dim, -1] + [1] * (dim - 1))
        vectors = sample_displacement(torch.from_numpy(self.vectors)[None], at).reshape(dim, -1).T.numpy()
        beyond = ((voxels < -0.5) | (voxels >= np.array(self.vectors.shape[1:]) - 0.5)).any(axis=1, keepdims=True)
        return points + np.where(beyond, 0.0, vectors)

    def parameters(self) -> tuple[Array, Array]:
        """ITK's fixed parameters: size, origin, spacing, direction; and parameters: the vectors, x fastest."""
        matrix, origin = self.grid[:-1, :-1], self.grid[:-1, -1]
        spacing = np.linalg.norm(matrix, axis=0)
        fixed = [self.vectors.shape[1:], origin, spacing, (matrix / spacing).ravel()]
        return np.concatenate(fixed), self.vectors.T.ravel()

    @classmethod
    def of(cls, fixed: Array, parameters: Array) -> DisplacementField:
        """The map that has these parameters in ITK."""
        dim = {10: 2, 18: 3}[len(fixed)]
        size, origin, spacing, direction = np.split(fixed, [dim, 2 * dim, 3 * dim])
        grid = np.eye(dim + 1)
        grid[:dim, :dim] = direction.reshape(dim, dim) * spacing
        grid[:dim, dim] = origin
        return cls(parameters.reshape(*size[::-1].astype(int), dim).T, grid)


@dataclass(frozen=True)
class CompositeTransform:
    """Maps of LPS points in mm, one after the other.

    Attributes:
        parts: in the order in which they act.
    """

    parts: Sequence[AffineMap | DisplacementField]

    @property
    def dim(self) -> int:
        """2 or 3."""
        return self.parts[0].dim

    def __call__(self, points: Points) -> Points:
        """Map points ``[N, dim]``."""
        for part in self.parts:
            points = part(points)
        return points


_KINDS: dict[str, type[AffineMap] | type[DisplacementField]] = {
    part.kind: part for part in (AffineMap, DisplacementField)
}


def composite_transform(
    displacement: Array, grid_affine: Array, world_affine: Array, affine_first: bool
) -> CompositeTransform:
    """Join a displacement field and an affine map into one transform of points.

    Beyond its grid the displacement goes on with its border value, as far as any point can be that it brings back
    into the grid. Farther away points stay where they are.

    Args:
        displacement: ``[dim, *shape]`` in voxels of its grid; components in array axis order; ``dim`` is 2 or 3.
        grid_affine: voxel to RAS world map of that grid in mm, ``[dim + 1, dim + 1]``; for a 2D grid also MONAI's 4x4.
        world_affine: point map in RAS world mm, ``[dim + 1, dim + 1]``; for 2D also 4x4.
        affine_first: the affine acts before the displacement (``Φ⁻¹``), not after it (``Φ``).

    Raises:
        ValueError: if the shapes do not fit together.
    """
    dim = len(displacement)
    if dim not in (2, 3) or displacement.ndim != dim + 1:
        raise ValueError(f"displacement must be [2, X, Y] or [3, X, Y, Z], got the shape {displacement.shape}.")
    affine = AffineMap(homogeneous(LPS @ homogeneous(world_affine, 3) @ LPS, dim))
    field = _padded_field(displacement, homogeneous(LPS @ homogeneous(grid_affine, 3), dim))
    return CompositeTransform((affine, field) if affine_first else (field, affine))


def affine_transform(world_affine: Array) -> CompositeTransform:
    """An affine map of points in RAS world mm, ``[dim + 1, dim + 1]``, as a transform of LPS points."""
    dim = len(world_affine) - 1
    return CompositeTransform((AffineMap(homogeneous(LPS @ homogeneous(world_affine, 3) @ LPS, dim)),))


def write_transform(transform: CompositeTransform, path: str | os.PathLike[str]) -> None:
    """Write a transform as ITK's composite transform, compressed.

    To ITK all its numbers are double precision, though the file holds displacements as they are here, in single.

    Args:
        transform: of points in two or three dimensions.
        path: the file to write, with the suffix ``.h5``; a file of that name is replaced.

    Raises:
        InputError: if the file cannot be written.
    """
    if Path(path).suffix != ".h5":
        raise ValueError(f"a transform file must have the suffix .h5, got {path}.")
    # In memory first: of a full disk HDF5 complains in many ways.
    with h5py.File(path, "w", driver="core", backing_store=False) as file:
        _add_group(file, 0, "CompositeTransform", transform.dim)
        for number, part in enumerate(reversed(transform.parts), start=1):  # ITK applies the last first
            group = _add_group(file, number, part.kind, part.dim)
            fixed, parameters = part.parameters()
            group[_FIXED] = fixed
            chunk = (min(len(parameters), _CHUNK),)
            group.create_dataset(_PARAMETERS, data=parameters, chunks=chunk, shuffle=True, **_COMPRESSION)
        file.flush()
        content = file.id.get_file_image()
    write_whole(path, lambda part: part.write_bytes(content))


def read_transform(path: str | os.PathLike[str]) -> CompositeTransform:
    """Read a transform from an ITK ``.h5`` file: affine maps and displacement fields, in any number and order.

    Raises:
        InputError: if the file is missing or damaged, or holds transforms of other kinds.
    """
    try:
        with h5py.File(path) as file:
            groups = file[_GROUP]
            parts = [_read_part(groups[str(number)], path) for number in reversed(range(len(groups)))]
        return CompositeTransform([part for part in parts if part])
    except InputError:
        raise
    except Exception as error:  # of a damaged file HDF5 complains with a dozen exceptions
        raise InputError(
            f"{path}: the transform cannot be read ({type(error).__name__}). Expected an ITK transform file (.h5), as "
            "inference writes for each case. Run inference again."
        ) from error


def _add_group(file: h5py.File, number: int, kind: str, dim: int) -> h5py.Group:
    group = file.create_group(f"{_GROUP}/{number}")
    group.create_dataset(_TYPE, data=[f"{kind}_double_{dim}_{dim}"], dtype=h5py.string_dtype("ascii"))
    return group


def _read_part(group: h5py.Group, path: str | os.PathLike[str]) -> AffineMap | DisplacementField | None:
    """One transform of a file; None for the composite, which only says that the others belong together."""
    name = str(group[_TYPE].asstr()[0])
    kind = name.split("_")[0]
    if kind == "CompositeTransform":
        return None
    if kind not in _KINDS:
        known = " and ".join(_KINDS)
        raise InputError(f"{path}: a transform of the kind {name}. Expected {known}. Convert the transform with ITK.")
    return _KINDS[kind].of(group[_FIXED][:], group[_PARAMETERS][:])


def _padded_field(displacement: Array, grid: npt.NDArray[np.float64]) -> DisplacementField:
    """The field of a displacement in voxels of the grid with this voxel to LPS affine."""
    dim = len(displacement)
    margin = math.ceil(float(np.linalg.norm(displacement, axis=0).max())) + 1
    vectors = np.einsum("ij,j...->i...", grid[:dim, :dim], displacement)
    # 1e-7 of a displacement is far below what matters.
    padded = np.pad(vectors.astype(np.float32), [(0, 0)] + [(margin, margin)] * dim, mode="edge")
    larger = grid.copy()
    larger[:dim, dim] -= grid[:dim, :dim] @ np.full(dim, margin)
    return DisplacementField(padded, larger)
