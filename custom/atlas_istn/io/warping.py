# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Resampling of images on their own grids by maps of points in the world, as ITK does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor
from scipy.ndimage import map_coordinates

from ..spatial.world import flip_points, homogeneous, transform_points
from .geometry import name_of
from .itk_transforms import Points
from .outputs import write_image, write_labelmap

__all__ = ["PointMap", "warp_labels", "warp_volume", "write_warped"]

PointMap = Callable[[Points], Points]
"""Takes LPS points ``[N, dim]`` in millimetres to LPS points."""


def warp_volume(image: MetaTensor, grid: MetaTensor, points: PointMap) -> npt.NDArray[np.float32]:
    """Resample the channels of an image linearly on another grid; 0 where the image has nothing.

    As in ITK, an image reaches half a voxel beyond the centres of its outer voxels, and is constant there.

    Args:
        image: ``[C, *shape]``.
        grid: its shape and affine count, ``[1, *target]``.
        points: from those of the grid to those of the image.

    Returns:
        ``[C, *target]``.
    """
    places, inside = _places(image, grid, points)
    channels = [map_coordinates(channel, places, order=1, mode="nearest") for channel in image.numpy()]
    warped = np.where(inside, np.stack(channels), 0).astype(np.float32)
    return warped.reshape(len(channels), *grid.shape[1:])


def warp_labels(labels: MetaTensor, grid: MetaTensor, points: PointMap) -> npt.NDArray[np.floating]:
    """Resample a label map: each label is interpolated by itself, and the largest wins; 0 outside.

    Args:
        labels: ``[1, *shape]``.
        grid: see `warp_volume`.
        points: see `warp_volume`.

    Returns:
        ``[*target]``, of the type of the labels.
    """
    places, inside = _places(labels, grid, points)
    content = labels[0].numpy()
    values = np.unique(content)
    masks = ((content == value).astype(np.float32) for value in values)
    shares = [map_coordinates(mask, places, order=1, mode="nearest") for mask in masks]
    warped = np.where(inside, values[np.argmax(shares, axis=0)], 0)
    return warped.astype(content.dtype).reshape(grid.shape[1:])


def _places(image: MetaTensor, grid: MetaTensor, points: PointMap) -> tuple[Points, npt.NDArray[np.bool_]]:
    """Voxel coordinates ``[dim, N]`` of the image for each voxel of the grid, and which lie in it ``[N]``."""
    dim = image.ndim - 1
    voxels = np.indices(grid.shape[1:], dtype=np.float64).reshape(dim, -1).T
    here = flip_points(transform_points(homogeneous(np.asarray(grid.affine), dim), voxels))
    there = flip_points(points(here))
    places = transform_points(np.linalg.inv(homogeneous(np.asarray(image.affine), dim)), there).T
    inside = np.all((places >= -0.5) & (places <= np.array(image.shape[1:])[:, None] - 0.5), axis=0)
    return places, inside


def write_warped(voxels: npt.NDArray[np.floating], grid: MetaTensor, stem: str, labels: bool = False) -> Path:
    """Write a resampled image in the format of the one on whose grid it lies: PNG, or else NIfTI.

    Args:
        voxels: ``[*shape]``.
        grid: of that shape; its file gives the geometry of the header.
        stem: path without suffix.
        labels: the values are whole numbers; those of a PNG are always rounded, and cut at its limits.

    Returns:
        The path with its suffix.

    Raises:
        InputError: the file cannot be written.
    """
    png = name_of(grid).lower().endswith(".png")
    path = Path(stem + (".png" if png else ".nii.gz"))
    affine = np.asarray(grid.affine)
    if not labels and not png:
        write_image(voxels, affine, path, name_of(grid))
        return path
    whole = voxels.round().astype(np.int64)
    values, indices = np.unique(whole.clip(0, np.iinfo(np.uint16).max) if png else whole, return_inverse=True)
    write_labelmap(indices.reshape(voxels.shape), affine, values.tolist(), path, name_of(grid))
    return path
