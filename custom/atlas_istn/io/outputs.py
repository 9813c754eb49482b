# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Files of one case and of one run: labelmaps on the input's grid, ITK transforms, reports and the atlas."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..spatial import Transform
from ..spatial.world import homogeneous
from .files import write_whole
from .geometry import GEOMETRY_FIELDS, read_nifti_header
from .itk_transforms import CompositeTransform, affine_transform, composite_transform, write_transform

__all__ = [
    "atlas_grid_affine",
    "world_transforms",
    "write_csv",
    "write_image",
    "write_json",
    "write_labelmap",
    "write_probability",
    "write_transforms",
]


def write_image(
    voxels: np.ndarray,
    affine: np.ndarray,
    path: str | os.PathLike[str],
    like: str | os.PathLike[str] = "",
    slope: float | None = None,
) -> None:
    """Write an image as NIfTI, with the same geometry in qform and sform, or with that of another file.

    Args:
        voxels: ``[*shape]`` or, channels last, ``[*shape, C]``. The channels of a 2D image become vector components
            (ITK would take a third axis for space), those of a 3D image the fourth axis.
        affine: voxel to RAS world map in millimetres, ``[dim + 1, dim + 1]``; for a 2D image also 4x4.
        path: ``.nii.gz``.
        like: an image on the same grid. If it is NIfTI, all that its header says of geometry is taken over as it is:
            both forms, codes, voxel sizes and unit, so that every tool sees the two in one place, whatever it makes of
            such a header.
        slope: what the voxels have to be multiplied by to give the values; kept in the header.

    Raises:
        InputError: the file cannot be written.
    """
    vectors = voxels.ndim == len(affine) == 3
    full = homogeneous(affine, 3)
    image = nib.Nifti1Image(voxels[:, :, None, None] if vectors else voxels, full)
    image.set_qform(full, "scanner")
    image.set_sform(full, "scanner")
    if not np.allclose(image.get_qform(), full, atol=1e-3):
        image.set_qform(None)  # a quaternion cannot hold shear: better none than one that contradicts the sform
    if vectors:
        image.header.set_intent("vector")
    image.header.set_xyzt_units("mm")
    if str(like).lower().endswith((".nii", ".nii.gz")) and Path(like).is_file():  # it may be gone by now
        # Without an affine of its own, nibabel writes the header as it is.
        image = nib.Nifti1Image(image.dataobj, None, image.header)
        source = read_nifti_header(like)
        if image.ndim == 2 and source["dim"][0] >= 3:  # a single slice
            image = nib.Nifti1Image(image.dataobj[:, :, None], None, image.header)
        for field in GEOMETRY_FIELDS:
            image.header[field] = source[field]
    image.header.set_slope_inter(slope, None if slope is None else 0.0)
    write_whole(path, lambda part: nib.save(image, part))


def write_labelmap(
    labelmap: np.ndarray,
    affine: np.ndarray,
    label_values: Sequence[int],
    path: str | os.PathLike[str],
    like: str | os.PathLike[str] = "",
) -> None:
    """Write class indices ``[*shape]`` with the label values of the data set, as PNG or NIfTI by the suffix.

    Args:
        labelmap: class indices; array axes x, y(, z).
        affine: voxel to RAS world map of the grid; a PNG does not keep it.
        label_values: the value that stands for each class.
        path: ``.png`` or ``.nii.gz``.
        like: the image that was segmented, see `write_image`.

    Raises:
        InputError: the file cannot be written, or its format does not hold the values.
    """
    types = (np.uint8, np.uint16) if str(path).endswith(".png") else (np.uint8, np.uint16, np.int32, np.uint32)
    ends = min(label_values), max(label_values)
    fitting = [kind for kind in types if np.iinfo(kind).min <= ends[0] and ends[1] <= np.iinfo(kind).max]
    if not fitting:
        raise InputError(
            f"{path}: the label values go from {ends[0]} to {ends[1]}. Expected whole numbers up to "
            f"{np.iinfo(types[-1]).max}, which is what the format holds. Choose other label_values"
            f"{', or convert the images to NIfTI' if len(types) == 2 else ''}."
        )
    values = np.asarray(label_values, dtype=fitting[0])[labelmap]
    if str(path).endswith(".png"):
        write_whole(path, lambda part: Image.fromarray(values.T).save(part))
    else:
        write_image(values, affine, path, like)


def write_probability(
    probability: np.ndarray, affine: np.ndarray, path: str | os.PathLike[str], like: str | os.PathLike[str] = ""
) -> None:
    """Write a probability ``[*shape]``, a byte for each voxel: in steps of 1/255, as NIfTI or, by the suffix, PNG.

    Args:
        probability: cut to 0 to 1.
        affine: voxel to RAS world map; a PNG does not keep it, and its white is 1.
        path: ``.png`` or ``.nii.gz``.
        like: the image that was segmented, see `write_image`.

    Raises:
        InputError: the file cannot be written.
    """
    steps = np.iinfo(np.uint8).max
    values = (probability.clip(0, 1) * steps).round().astype(np.uint8)
    if str(path).endswith(".png"):
        write_whole(path, lambda part: Image.fromarray(values.T).save(part))
    else:
        write_image(values, affine, path, like, slope=1 / steps)


def write_json(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a JSON file."""
    text = json.dumps(content, indent=2) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_csv(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write rows as CSV; the columns are the keys in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_whole(path, write)


def atlas_grid_affine(shape: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    """Voxel to RAS world map ``[dim + 1, dim + 1]`` of the atlas: axes along the world's, the centre at the origin."""
    affine = np.diag([*spacing, 1.0])
    affine[:-1, -1] = -0.5 * (np.asarray(shape) - 1) * np.asarray(spacing)
    return affine


def write_transforms(
    transform: Transform, subject_affine: np.ndarray, path: Callable[[str], str | os.PathLike[str]]
) -> None:
    """Write both directions of one case's transform as ITK composite transforms in LPS millimetres.

    ``atlas_to_subject`` brings the atlas into the subject's space: as a point map it is Φ⁻¹ and takes subject points to
    atlas points, as resampling wants it. ``subject_to_atlas`` is Φ and brings the subject into atlas space.

    Args:
        transform: a batch of one.
        subject_affine: voxel to RAS world map of the subject on the model's grid.
        path: file name of a direction, called with ``"atlas_to_subject"`` and ``"subject_to_atlas"``.
    """
    atlas = atlas_grid_affine(transform.shape, transform.spacing)
    names = ("atlas_to_subject", "subject_to_atlas")
    for name, composite in zip(names, world_transforms(transform, atlas, subject_affine), strict=True):
        write_transform(composite, path(name))


def world_transforms(
    transform: Transform, moving_affine: np.ndarray, fixed_affine: np.ndarray
) -> tuple[CompositeTransform, CompositeTransform]:
    """Take a transform from the grid, which both images share, to their worlds.

    Args:
        transform: a batch of one.
        moving_affine: voxel to RAS world map of the moving image on the grid, ``[dim + 1, dim + 1]``, in 2D also 4x4.
        fixed_affine: of the fixed image.

    Returns:
        What resamples the moving image onto the fixed one: Φ⁻¹, as a map of fixed points to moving points. And what
        resamples the fixed image in the space of the moving one: Φ. In LPS millimetres.
    """
    dim = len(transform.shape)
    moving, fixed = homogeneous(moving_affine, dim), homogeneous(fixed_affine, dim)
    forward = np.eye(dim + 1)
    forward[:dim] = transform.affine[0].double().cpu().numpy()
    centred = atlas_grid_affine(transform.shape, transform.spacing)  # T acts on millimetres about the image centre
    to_fixed = fixed @ np.linalg.inv(centred) @ forward @ centred @ np.linalg.inv(moving)
    if transform.field is None:
        return affine_transform(np.linalg.inv(to_fixed)), affine_transform(to_fixed)
    inverse, direct = (cast(Tensor, transform.deformation(way))[0].double().cpu().numpy() for way in (True, False))
    steps = [(n - 1) / max(m - 1, 1) for n, m in zip(transform.shape, inverse.shape[1:], strict=True)]
    grid = moving @ np.diag([*steps, 1.0])  # of the field, with the corners of the images
    return (
        composite_transform(inverse, grid, np.linalg.inv(to_fixed), affine_first=True),
        composite_transform(direct, grid, to_fixed, affine_first=False),
    )
