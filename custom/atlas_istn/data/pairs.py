# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Reading a pair of images with their structures of interest as maps, and bringing both onto one grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, ResampleToMatch
from scipy.ndimage import distance_transform_edt

from ..errors import InputError
from ..io.geometry import check_same_grid, name_of
from ..io.loading import LoadCased, label_classes, read_volume
from ..io.pairs import SIDES
from ..io.points import PointFile, read_points
from ..spatial.world import flip_points, homogeneous, transform_points

__all__ = ["AlignPaird", "JoinPaird", "LoadPaird", "StructureReader", "match_points"]

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


class LoadPaird(MapTransform):
    """Read both images of a pair, with the checks of `LoadCased`, and their structures of interest.

    Args:
        spatial_dims: 2 or 3.
        structures: reads these; None where there are none.
        strict: refuse pairs whose structures are missing; else they go without.
    """

    def __init__(self, spatial_dims: int, structures: StructureReader | None = None, strict: bool = True) -> None:
        super().__init__(SIDES)
        self.strict = strict
        self.structures = structures if structures and structures.kind != "none" else None
        self.readers = {side: LoadCased(side, spatial_dims, image_key=side) for side in SIDES}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the paths of a pair, as `find_pairs` lists them.

        Returns:
            ``{"moving", "fixed"}`` images ``[1, *shape]``, ``{"moving_structures", "fixed_structures"}`` maps
            ``[K, *shape]`` on their grids.

        Raises:
            InputError: a file cannot be used, or the structures of both images differ in number.
        """
        result: dict[Hashable, Any] = {}
        points = {}
        kind = "points" if self.structures and self.structures.kind == "landmarks" else "structure"
        there = self.strict or all(Path(data.get(f"{side}_{kind}", "")).exists() for side in SIDES)
        for side in SIDES:
            result[side] = self.readers[side]({side: data[side]})[side]
            if not there or not self.structures:
                continue
            if kind == "points":
                points[side] = read_points(data[f"{side}_points"], self.structures.spatial_dims)
            else:
                result[f"{side}_structures"] = self.structures(data[f"{side}_structure"], result[side])
        if self.structures and points:
            matched = match_points(points["moving"], points["fixed"], self.structures.merge)
            for side, file in zip(SIDES, matched, strict=True):
                result[f"{side}_structures"] = self.structures.landmark_maps(file, result[side])
        return result


class JoinPaird:
    """Put both images of a pair into one tensor, the moving one first, and their structures into another.

    Of ``{"moving", "fixed", "moving_structures", "fixed_structures"}`` it makes ``{"image"}`` and, where there are
    structures, ``"label"``; nothing else is left.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Join tensors ``[C, *shape]``."""
        joined: dict[Hashable, Any] = {"image": torch.cat([data[side] for side in SIDES])}
        if f"{SIDES[0]}_structures" in data:
            joined["label"] = torch.cat([data[f"{side}_structures"] for side in SIDES])
        return joined


class AlignPaird(MapTransform):
    """Bring the moving image of a pair onto the grid of the fixed one by their world coordinates.

    Args:
        keys: images and maps of the moving image.
        to: key of the fixed image.

    Raises:
        InputError: on calling, if they lie apart.
    """

    def __init__(self, keys: KeysCollection, to: str = "fixed", allow_missing_keys: bool = True) -> None:
        super().__init__(keys, allow_missing_keys)
        self.to = to
        self.resample = ResampleToMatch(mode="bilinear", padding_mode="border")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Resample every keyed image ``[C, *shape]``."""
        result = dict(data)
        for key in self.key_iterator(result):
            if not _overlap(result[key], result[self.to]):
                raise InputError(
                    f"{name_of(result[key])} and {name_of(result[self.to])} lie in different places of the world and "
                    "do not overlap. Set pair_start to grids, which begins with their centres on each other."
                )
            result[key] = self.resample(result[key], result[self.to])
        return result


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


def _overlap(first: MetaTensor, second: MetaTensor) -> bool:
    """Whether the boxes of two images in the world have points in common."""

    def box(image: MetaTensor) -> tuple[np.ndarray, np.ndarray]:
        dim = image.ndim - 1
        ends = [(0, n - 1) for n in image.shape[1:]]
        corners = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, dim)
        world = transform_points(homogeneous(np.asarray(image.affine), dim), corners)
        return world.min(axis=0), world.max(axis=0)

    (low, high), (other_low, other_high) = box(first), box(second)
    return bool((np.maximum(low, other_low) <= np.minimum(high, other_high)).all())
