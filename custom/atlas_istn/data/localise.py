# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Scans that are larger than the model's grid: they are cut to it where the anatomy lies."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Compose, Crop, InvertibleTransform, MapTransform, Pad, Spacingd

from ..errors import InputError
from ..io.geometry import name_of
from ..networks import Locator
from ..spatial.world import homogeneous, transform_points
from .transforms import AntiAliasd

__all__ = ["MISSING", "Localised", "Overviewd", "box_centre"]

logger = logging.getLogger(__name__)

MISSING = "missing_share"
"""Key, in the metadata of an image that was localised, of the share of the anatomy beyond its border."""
_NOTICEABLE = 0.03  # share that a warning tells of: below, it is the resolution of the locator
_MARGIN = 2  # voxels of the scan at each side that resampling to the model's grid needs

Array = npt.NDArray[np.float64]


class Localised(MapTransform, InvertibleTransform):
    """Cut scans about the anatomy to the extent of the model's grid; what the grid needs beyond the border is padded.

    The scan is still at its own voxel size, so that only the cut is resampled. `Invertd` puts results back into the
    whole scan. Padding has the least value of each channel of the cut, and counts for nothing in the scaling of its
    intensities: see `atlas_istn.data.transforms.ScalePercentilesd`.

    The share of the anatomy that the border of the scan cuts off is ``meta["missing_share"]`` of the image, and a line
    of ``meta["warnings"]`` if there is any.

    Args:
        keys: images ``[C, *shape]`` on one grid (MetaTensor), that of the scan first.
        spatial_size: voxels of the model's grid.
        spacing: of the model's grid, mm.
        locator: finds the anatomy; of no use where there is a `truth`.
        weights: reads the weights of the locator; called once, when the first scan comes. None for one that has them.
        truth: key of a labelmap of channels, background first: the centre of its box is taken in place of what the
            locator finds.
        strict: refuse scans in which the anatomy is not found. Otherwise, as while a model is chosen, the grid lies
            about the last key's labelmap, also where the anatomy was taken to be beside it, or about the scan's middle.
        allow_missing_keys: accept data without some of the keys.

    Raises:
        InputError: on calling, if the anatomy is not found.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: Sequence[int],
        spacing: Sequence[float],
        locator: Locator | None = None,
        weights: Callable[[], Mapping[str, Any]] | None = None,
        truth: str = "",
        strict: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.extent = np.multiply(spatial_size, spacing)
        self.locator = locator
        self.weights = weights
        self.truth = truth
        self.strict = strict
        self.crop, self.pad = Crop(), Pad()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Cut every keyed image."""
        result = dict(data)
        scan = result[self.keys[0]]
        centre = box_centre(result[self.truth]) if self.truth else self._find(scan)
        if not self.strict:
            centre = self._corrected(scan, result.get(self.keys[-1], scan), centre)
        elif centre is None:
            centre = _middle(scan)
        for key in self.key_iterator(result):
            result[key] = self._cut(result[key], centre)
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Put every keyed cut back to its place; all around it becomes zero."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.crop.inverse(self.pad.inverse(result[key]))
        return result

    def _find(self, scan: MetaTensor) -> Array | None:
        """Voxel coordinates ``[dim]`` of the anatomy's centre; None if it is not found and need not be."""
        if self.locator is None:
            raise ValueError("Localised needs a locator or a truth")
        if self.weights is not None:
            self.locator.load_state_dict(self.weights())
            self.weights = None
        overview = _overview({"image": scan}, self.locator.spacing)["image"]
        location = self.locator.locate(overview.as_tensor())
        doubt = self.locator.doubt(location)
        if location is None or doubt:
            message = f"{name_of(scan)}: the anatomy was not found: {doubt}"
            if self.strict:
                raise InputError(
                    f"{message}. Expected a scan that shows all or most of it. Check that it is of the right part of "
                    "the body, and that its header states the orientation and the voxel size."
                )
            logger.warning("%s; the grid was placed without it", message)
            return None
        scan.meta[MISSING] = round(location.missing, 4)
        if location.missing >= _NOTICEABLE:
            warning = f"about {location.missing:.0%} of the anatomy lies beyond the border of the scan"
            logger.warning("%s: %s", name_of(scan), warning)
            scan.meta["warnings"] = "\n".join(filter(None, [scan.meta.get("warnings", ""), warning]))
        return _on_grid(location.centre.numpy() / np.asarray(self.locator.spacing), overview, scan)

    def _corrected(self, scan: MetaTensor, labels: MetaTensor, centre: Array | None) -> Array:
        """Where the grid of a scan is placed in spite of what was found."""
        truth = None if labels is scan else box_centre(labels)
        if centre is None:
            return _middle(scan) if truth is None else truth
        if truth is not None and box_centre(self._cut(labels, centre)) is None:
            logger.warning("%s: the anatomy was taken to be where it is not; its label tells where", name_of(scan))
            return truth
        return centre

    def _cut(self, volume: MetaTensor, centre: Array) -> MetaTensor:
        dim = volume.ndim - 1
        shape = np.asarray(volume.shape[1:])
        size = np.ceil(self.extent / np.asarray(volume.pixdim)[:dim]).astype(int) + 2 * _MARGIN
        start = np.round(centre - (size - 1) / 2).astype(int)
        start = np.clip(start, 1 - size, shape - 1)  # some of the scan, however far off the centre may be
        first, last = np.maximum(start, 0), np.minimum(start + size, shape)
        cut = self.crop(volume, tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True)))
        share = 1 - (1 - _declared_padding(volume, cut)) * float(np.prod(last - first) / np.prod(size))
        to_pad = [(0, 0), *((int(a), int(b)) for a, b in zip(first - start, start + size - last, strict=True))]
        padded: MetaTensor = self.pad(cut, to_pad=to_pad, value=float(cut.min()))
        if len(cut) > 1:
            beyond = torch.ones(padded.shape[1:], dtype=torch.bool)
            beyond[tuple(slice(int(a), int(b)) for a, b in zip(first - start, last - start, strict=True))] = False
            padded[:, beyond] = cut.flatten(1).amin(dim=1)[:, None]
        padded.meta["padding"] = share
        return padded


class Overviewd(MapTransform):
    """What a locator learns from: a scan at its voxel size, the foreground, and where the centre of that is.

    Args:
        keys: the scan ``[C, *shape]`` and its labelmap ``[Nc, *shape]`` of channels, background first (MetaTensor).
        spacing: of the locator, mm.
    """

    def __init__(self, keys: KeysCollection, spacing: Sequence[float]) -> None:
        super().__init__(keys)
        self.spacing = list(spacing)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Make ``{"image" [C, *coarse], "foreground" [1, *coarse], "centre" [dim]}``, tensors.

        The centre is in mm from the first voxel, not a number where there is no foreground.
        """
        scan, labels = (data[key] for key in self.keys)
        foreground = MetaTensor(labels.as_tensor()[1:].sum(dim=0, keepdim=True).float(), meta=labels.meta)
        small = _overview({"image": scan, "foreground": foreground}, self.spacing)
        centre = box_centre(labels)
        if centre is None:
            place = np.full(len(self.spacing), np.nan)
        else:
            place = _on_grid(centre, scan, small["image"]) * self.spacing
        tensors: dict[Hashable, Any] = {key: volume.as_tensor() for key, volume in small.items()}
        return {**tensors, "centre": torch.from_numpy(place).float()}


def box_centre(labels: torch.Tensor) -> Array | None:
    """Find the centre of the smallest box about the foreground of a labelmap.

    Args:
        labels: ``[Nc, *shape]``, channels with the background first.

    Returns:
        Voxel coordinates ``[dim]``; None where there is no foreground.
    """
    foreground = torch.as_tensor(labels)[1:].sum(dim=0) > 0.5
    if not foreground.any():
        return None
    places = foreground.nonzero().double()
    return np.asarray((places.amin(dim=0) + places.amax(dim=0)).cpu()) / 2


def _overview(volumes: Mapping[str, MetaTensor], spacing: Sequence[float]) -> dict[str, MetaTensor]:
    """Volumes at a coarse voxel size."""
    keys = list(volumes)
    coarsen = Compose([AntiAliasd(keys, spacing), Spacingd(keys, pixdim=spacing, mode="bilinear")])
    coarse: dict[str, MetaTensor] = coarsen(dict(volumes))
    return coarse


def _on_grid(voxel: Array, source: MetaTensor, target: MetaTensor) -> Array:
    """Voxel coordinates ``[dim]`` of one image as those of another."""
    dim = source.ndim - 1
    from_voxel, to_world = (homogeneous(np.asarray(image.affine, dtype=float), dim) for image in (source, target))
    return transform_points(np.linalg.inv(to_world) @ from_voxel, voxel[None])[0]


def _middle(volume: MetaTensor) -> Array:
    return (np.asarray(volume.shape[1:]) - 1) / 2


def _declared_padding(volume: MetaTensor, cut: MetaTensor) -> Array:
    """Share of each channel of a cut that is padding, where the image has some: one value, and none is as frequent."""
    declared = np.broadcast_to(volume.meta.get("padding", 0.0), len(volume))
    values = volume.as_tensor().flatten(1).mode(dim=1).values if declared.any() else volume.as_tensor().flatten(1)[:, 0]
    shares = (cut.as_tensor().flatten(1) == values[:, None]).double().mean(dim=1)
    return np.where(declared > 0, np.asarray(shares), 0.0)
