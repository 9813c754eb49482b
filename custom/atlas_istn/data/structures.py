# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Structures of interest as maps, and the landmarks of two images in one order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from scipy.ndimage import distance_transform_edt

from ..errors import InputError
from ..io.geometry import check_same_grid, name_of
from ..io.loading import label_classes, read_volume
from ..io.points import PointFile, read_points
from ..spatial.world import flip_points, homogeneous, transform_points

__all__ = ["StructureReader", "match_points"]

_TOLERANCE = 1e-3  # by which the values of a map may lie outside 0 to 1


class StructureReader:
    """Reads the structure of interest of an image as maps in [0, 1], in which 0.5 is the border.

    Args:
        kind: ``"labels"``; ``"maps"`` (soft: probabilities, smoothed shapes); ``"landmarks"``, points that become
            Gaussian maps; ``"none"``.
        spatial_dims: 2 or 3.
        label_values: of labels: the value of each class, background first.
        merge: one map of all labels, or of all landmarks, in place of one for each.
        others: of labels: what values are that ``label_values`` does not have, ``"refuse"`` or ``"background"``.
        unit: of maps: the value that means 1, such as 255.
        width: of landmarks: standard deviation of the Gaussians in millimetres.
        distance: of labels: distance in millimetres from the border over which the map goes from 0.5 to 1 or 0, so
            that maps are distance maps; 0 for the labels themselves.

    Raises:
        InputError: an unknown kind.
    """

    def __init__(
        self,
        kind: str,
        spatial_dims: int,
        label_values: Sequence[int] = (0, 1),
        merge: bool = True,
        others: str = "refuse",
        unit: float = 1.0,
        width: float = 3.0,
        distance: float = 0.0,
    ) -> None:
        if kind not in ("labels", "maps", "landmarks", "none"):
            raise InputError(f"structures: expected labels, maps, landmarks or none, found '{kind}'.")
        self.kind = kind
        self.spatial_dims = spatial_dims
        self.label_values = list(label_values)
        self.merge = merge
        self.others = others
        self.unit = unit
        self.width = width
        self.distance = distance

    def __call__(self, path: str, image: MetaTensor) -> MetaTensor:
        """Read the maps ``[K, *shape]`` of an image, on its grid.

        Args:
            path: of the label, the map, or the points.
            image: ``[1, *shape]``.

        Raises:
            InputError: the file cannot be read, does not fit the image, or holds something else.
        """
        if self.kind == "landmarks":
            return self.landmark_maps(read_points(path, self.spatial_dims), image)
        volume = read_volume(path, self.spatial_dims)
        check_same_grid(image, volume)
        if self.kind == "maps":
            return self._soft(volume)
        maps = self._masks(volume)
        if self.distance:
            spacing = np.asarray(image.pixdim)[: self.spatial_dims]
            maps = torch.stack([_distance_map(mask, spacing, self.distance) for mask in maps])
        return MetaTensor(maps, meta=image.meta)

    def landmark_maps(self, file: PointFile, image: MetaTensor) -> MetaTensor:
        """Gaussian maps ``[K, *shape]`` of points on the grid of an image; of a merged map the largest counts."""
        dim = self.spatial_dims
        shape = tuple(image.shape[1:])
        affine = homogeneous(np.asarray(image.affine), dim)
        voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, dim).astype(float)
        world = transform_points(affine, voxels)
        points = flip_points(file.points[:, :dim])
        maps = [np.exp(-((world - p) ** 2).sum(axis=1) / (2 * self.width**2)).reshape(shape) for p in points]
        stacked = np.max(maps, axis=0, keepdims=True) if self.merge else np.stack(maps)
        return MetaTensor(torch.from_numpy(stacked.astype(np.float32)), meta=image.meta)

    def _soft(self, volume: MetaTensor) -> MetaTensor:
        maps = volume.float() / self.unit
        low, high = float(maps.min()), float(maps.max())
        if low < -_TOLERANCE or high > 1 + _TOLERANCE:
            raise InputError(
                f"{name_of(volume)}: a map from {low * self.unit:g} to {high * self.unit:g}. Expected values from 0 to "
                f"structure_unit ({self.unit:g}). Set structure_unit to what means 1, or structures to labels."
            )
        return maps

    def _masks(self, volume: MetaTensor) -> torch.Tensor:
        if self.others == "background":
            known = np.isin(np.round(volume.numpy()), self.label_values)
            volume = MetaTensor(torch.where(torch.from_numpy(known), volume, self.label_values[0]), meta=volume.meta)
        classes = torch.as_tensor(label_classes(volume, self.label_values))[0]
        masks = torch.stack([(classes == index).float() for index in range(1, len(self.label_values))])
        return masks.amax(dim=0, keepdim=True) if self.merge else masks


def match_points(moving: PointFile, fixed: PointFile, any_number: bool = False) -> tuple[PointFile, PointFile]:
    """Bring the points of two files into one order: by names where both have them, else as they stand.

    Args:
        moving: of the moving image.
        fixed: of the fixed image.
        any_number: which point is which does not matter.

    Raises:
        InputError: they differ in number or in names.
    """
    if any_number:
        return moving, fixed
    if moving.names and fixed.names:
        if set(moving.names) != set(fixed.names):
            alone = sorted(set(moving.names) ^ set(fixed.names))
            raise InputError(
                f"the landmarks of both images differ: '{alone[0]}' is in one file only. Expected the same names."
            )
        order = [moving.names.index(name) for name in fixed.names]
        return moving.reordered(order), fixed
    if len(moving.points) != len(fixed.points):
        raise InputError(
            f"the landmarks of both images differ in number: {len(moving.points)} of the moving image, "
            f"{len(fixed.points)} of the fixed one, and no names tell which is which. Name them, or complete the files."
        )
    return moving, fixed


def _distance_map(mask: torch.Tensor, spacing: np.ndarray, limit: float) -> torch.Tensor:
    """Signed distance in millimetres from the border of a mask, as a map: 0.5 there, 1 and 0 ``limit`` beyond."""
    inside = mask.numpy() > 0.5
    if not inside.any() or inside.all():
        return mask
    # Distances are those of voxel centres to the nearest on the other side, half a voxel from the border.
    half = 0.5 * float(spacing.min())
    signed = np.where(
        inside,
        distance_transform_edt(inside, spacing) - half,
        half - distance_transform_edt(~inside, spacing),
    )
    return torch.from_numpy(np.clip(0.5 + 0.5 * signed / limit, 0.0, 1.0).astype(np.float32))
