# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Reading a pair of images with their structures of interest, and bringing both onto one grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    MapTransform,
    Orientationd,
    ResampleToMatch,
    ResizeWithPadOrCropd,
    Spacingd,
)

from ..errors import InputError
from ..io.geometry import name_of
from ..io.loading import LoadCased
from ..io.pairs import SIDES
from ..io.points import read_points
from ..spatial.world import homogeneous, transform_points
from .structures import StructureReader, match_points
from .transforms import AntiAliasd, ScalePercentilesd

__all__ = ["AlignPaird", "JoinPaird", "LoadPaird", "prepare_pairs"]

STARTS = ("grids", "world")


def prepare_pairs(
    spatial_size: Sequence[int],
    spacing: Sequence[float],
    percentiles: Sequence[float] = (1, 99),
    limits: Sequence[float] = (-0.5, 1.5),
    start: str = "grids",
    structures: StructureReader | None = None,
    strict: bool = True,
) -> Compose:
    """Make what brings both images of a pair, and their structures, onto one grid.

    Args:
        spatial_size: of the grid.
        spacing: of its voxels, in millimetres.
        percentiles: of the intensities of each image that become 0 and 1.
        limits: least and greatest intensity that results.
        start: ``"grids"``, the centres of both images on each other; ``"world"``, as their headers place them.
        structures: reads these; None where there are none.
        strict: refuse pairs whose structures are missing.

    Returns:
        Transform of the paths of a pair, as `find_pairs` lists them; its results are those of `LoadPaird` on the grid.

    Raises:
        InputError: an unknown start.
    """
    if start not in STARTS:
        raise InputError(f"pair_start: expected {' or '.join(STARTS)}, found '{start}'.")
    dim = len(spatial_size)
    moving, fixed = ([side, f"{side}_structures"] for side in SIDES)
    everything = [*moving, *fixed]
    optional: dict[str, Any] = {"allow_missing_keys": True}
    orientation = [Orientationd(everything, axcodes="RAS", labels=None, **optional)] if dim == 3 else []
    align = (
        AlignPaird(moving) if start == "world" else ResizeWithPadOrCropd(moving, spatial_size=spatial_size, **optional)
    )
    return Compose(
        [
            LoadPaird(dim, structures, strict),
            *orientation,
            AntiAliasd(SIDES, spacing),
            ScalePercentilesd(SIDES, percentiles[0], percentiles[1], limits),
            Spacingd(everything, pixdim=spacing, mode="bilinear", **optional),
            ResizeWithPadOrCropd(fixed, spatial_size=spatial_size, **optional),
            align,
        ]
    )


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
        files = [data.get(f"{side}_{kind}") for side in SIDES]
        there = self.strict or all(file and Path(file).exists() for file in files)
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
    structures, ``"label"``: plain tensors, since metadata would slow every operation down. Nothing else is left.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Join tensors ``[C, *shape]``."""
        joined: dict[Hashable, Any] = {"image": _joined([data[side] for side in SIDES])}
        if f"{SIDES[0]}_structures" in data:
            joined["label"] = _joined([data[f"{side}_structures"] for side in SIDES])
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


def _joined(images: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([torch.as_tensor(image).float() for image in images]).as_subclass(torch.Tensor)


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
