# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The command that moves images, labels, points and meshes by a transform file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..io.loading import read_volume
from ..io.names import IMAGE_SUFFIXES
from ..io.point_maps import read_point_map
from ..io.points import POINT_SUFFIXES, read_points
from ..io.warping import warp_labels, warp_volume, write_warped
from .surfaces import MESH_SUFFIXES, read_surface, write_surface

__all__ = ["apply"]

logger = logging.getLogger(__name__)


def apply(transform: str, path: str, to: str, grid: str = "", labels: bool = False) -> None:
    """Move an image, a label map, points or a mesh by a transform, as ITK does.

    A transform takes points of the fixed image to those of the moving one. So PAIR_moving_to_fixed.h5 brings the moving
    image onto the grid of the fixed one; points and meshes of the moving image go to the fixed one by the other file,
    PAIR_fixed_to_moving.h5.

    Args:
        transform: file of ours or of ITK (.h5, .tfm, .txt, .mat).
        path: image (.nii.gz, .nii, .png, .nrrd, .mha, or a folder of a DICOM series), points (.csv in LPS mm, .fcsv,
            .mrk.json) or mesh (.vtp, .ply, .stl).
        to: file to write; points and meshes keep their format, images become .nii.gz, or .png on the grid of a PNG.
        grid: of an image: the image on whose grid it is resampled; needed for images.
        labels: the image is a label map (its labels are interpolated one by one).

    Raises:
        InputError: a file cannot be read, written or moved, or the grid is missing.
    """
    points = read_point_map(transform)
    suffix = next((end for end in (*POINT_SUFFIXES, *MESH_SUFFIXES) if path.lower().endswith(end)), "")
    if suffix and not to.lower().endswith(suffix):
        raise InputError(f"to: expected a {suffix} file, as the one that is moved, found {to}.")
    if suffix in POINT_SUFFIXES:
        content = read_points(path, points.dim)
        content.write(_moved(points, content.points), to)
    elif suffix:
        surface = read_surface(path)
        write_surface(surface.moved(_moved(points, surface.points), **surface.values), to)
    else:
        to = str(_move_image(points, path, to, grid, labels))
    logger.info("%s moved by %s: %s", path, transform, to)


def _moved(points: Any, places: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Points ``[N, 3]``, of which a map in 2D leaves z as it is."""
    moved = places.astype(np.float64).copy()
    moved[:, : points.dim] = points(moved[:, : points.dim])
    return moved


def _move_image(points: Any, path: str, to: str, grid: str, labels: bool) -> Path:
    if not grid:
        raise InputError("grid: missing. Expected the image on whose grid the result shall lie, such as the fixed one.")
    image, target = read_volume(path, points.dim), read_volume(grid, points.dim)
    if labels and bool((image != image.round()).any()):
        raise InputError(f"{path}: expected a label map, found values that are no integers. Leave out --labels.")
    warped = warp_labels(image, target, points) if labels else warp_volume(image, target, points)[0]
    suffix = next((end for end in IMAGE_SUFFIXES if to.lower().endswith(end)), "")
    expected = ".png" if grid.lower().endswith(".png") else ".nii.gz"
    if suffix != expected:
        raise InputError(f"to: expected a {expected} file for an image on the grid of {grid}, found {to}.")
    return write_warped(warped, target, to[: -len(suffix)], labels)
