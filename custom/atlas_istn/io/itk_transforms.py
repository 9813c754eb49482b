# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Spatial maps as ITK transform files, which ITK, SimpleITK, ANTs and 3D Slicer read.

An ITK transform maps the *points* of the output grid to the points where the input is sampled. A case has two maps:

- ``Φ⁻¹ = φ⁻¹ ∘ T⁻¹``, subject points to atlas points: resamples the atlas onto the subject; the affine acts first;
- ``Φ = T ∘ φ``, atlas points to subject points: resamples the subject onto the atlas; the affine acts last.

Both displacements live on the atlas grid. Coordinates are RAS millimetres here and LPS millimetres in the file.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError

__all__ = ["composite_transform", "write_transform"]


def composite_transform(
    displacement: npt.NDArray[np.floating],
    grid_affine: npt.NDArray[np.floating],
    world_affine: npt.NDArray[np.floating],
    affine_first: bool,
) -> Any:
    """Join a displacement field and an affine map into one ITK composite transform of points.

    Beyond its grid the displacement goes on with its border value, as far as any point can be that it brings back
    into the grid. Farther away ITK leaves points where they are.

    Args:
        displacement: ``[dim, *shape]`` in voxels of its grid; components in array axis order; ``dim`` is 2 or 3.
        grid_affine: voxel to RAS world map of that grid in mm, ``[dim + 1, dim + 1]``; for a 2D grid also MONAI's 4x4.
        world_affine: point map in RAS world mm, ``[dim + 1, dim + 1]``; for 2D also 4x4.
        affine_first: the affine acts before the displacement (``Φ⁻¹``), not after it (``Φ``).

    Returns:
        An ``itk.CompositeTransform`` in double precision that maps LPS points in mm.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    import itk  # loading it takes seconds, which most users of this package need not spend

    dim = len(displacement)
    if dim not in (2, 3) or displacement.ndim != dim + 1:
        raise ValueError(f"displacement must be [2, X, Y] or [3, X, Y, Z], got the shape {displacement.shape}.")
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    grid = _homogeneous(to_lps @ _homogeneous(grid_affine, 3), dim)
    world = _homogeneous(to_lps @ _homogeneous(world_affine, 3) @ to_lps, dim)

    affine = itk.AffineTransform[itk.D, dim].New()
    affine.SetParameters(_parameters([*world[:dim, :dim].ravel(), *world[:dim, dim]]))
    field = _field_transform(np.asarray(displacement, dtype=np.float64), grid)

    composite = itk.CompositeTransform[itk.D, dim].New()
    for transform in (field, affine) if affine_first else (affine, field):
        composite.AddTransform(transform)  # ITK applies the one added last before all others
    return composite


def write_transform(transform: Any, path: str | os.PathLike[str]) -> None:
    """Write an ITK transform to a compressed ``.h5`` file, whole or not at all.

    Args:
        transform: a double precision ITK transform, such as :func:`composite_transform` returns.
        path: the file to write, with the suffix ``.h5``; a file of that name is replaced.

    Raises:
        InputError: if the file cannot be written.
    """
    import itk

    target = Path(path)
    if target.suffix != ".h5":
        raise ValueError(f"a transform file must have the suffix .h5, got {target}.")
    part = target.with_name(f".{target.stem}.{os.getpid()}.part.h5")  # ITK chooses the format by the suffix
    try:
        itk.transformwrite(transform, part, compression=True)
        part.replace(target)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{target}: the transform cannot be written. Expected a folder that exists, may be written to and has "
            f"free space. Choose another output_dir or free the space."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _homogeneous(affine: npt.NDArray[np.floating], dim: int) -> npt.NDArray[np.float64]:
    """Cut or fill a 3x3 or 4x4 affine to ``[dim + 1, dim + 1]``: the first axes, and the translation."""
    result = np.eye(dim + 1)
    rank = min(dim, len(affine) - 1)
    result[:rank, :rank] = affine[:rank, :rank]
    result[:rank, dim] = affine[:rank, -1]
    return result


def _field_transform(displacement: npt.NDArray[np.float64], grid: npt.NDArray[np.float64]) -> Any:
    """ITK displacement field of ``[dim, *shape]`` voxels on the grid with this voxel to LPS affine."""
    import itk

    dim = len(displacement)
    margin = math.ceil(float(np.linalg.norm(displacement, axis=0).max())) + 1
    padded = np.pad(displacement, [(0, 0)] + [(margin, margin)] * dim, mode="edge")
    matrix = grid[:dim, :dim]
    spacing = np.linalg.norm(matrix, axis=0)
    origin = grid[:dim, dim] - matrix @ np.full(dim, margin)

    vectors = np.einsum("ij,j...->i...", matrix, padded)
    # 1e-7 of a displacement is far below what matters; the empty half of each double then compresses to nothing.
    vectors = vectors.astype(np.float32).astype(np.float64)

    transform = itk.DisplacementFieldTransform[itk.D, dim].New()
    transform.SetFixedParameters(_parameters([*padded.shape[1:], *origin, *spacing, *(matrix / spacing).ravel()]))
    transform.SetParameters(_parameters(vectors.T.ravel().tolist()))  # x fastest, the components of a point together
    return transform


def _parameters(values: list[float]) -> Any:
    import itk

    return itk.OptimizerParameters[itk.D]([float(value) for value in values])
