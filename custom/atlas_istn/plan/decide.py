# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What a data set asks for: voxel size, grid, intensities, augmentation and architecture, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .survey import Anatomy, Scan

__all__ = [
    "Decision",
    "Grid",
    "decide_architecture",
    "decide_augmentation",
    "decide_channels",
    "decide_grid",
    "decide_refinement",
    "decide_window",
    "outside",
]

_MOST = {2: 128 * 128, 3: 48 * 64 * 48}  # voxels of a grid, so that two cores train it in an hour
_SCALES = 4  # of the networks
_MARGIN = 0.08  # of the extent that the grid has to hold, on each side
_LEAST_MARGIN = 2.0  # voxels on each side
_LEAST = 16  # voxels along the finest axes, so that two are left for the coarsest scale to compare
_WITHIN = 0.97  # share of the cases whose foreground has to lie in the grid altogether
_FAR_OFF = 1.15  # of the usual reach, from which a case counts as far off
_MOST_AROUND = 3.0  # times the box of the aligned foreground, above which the anatomy is looked for
_THICK = 3.0  # ratio of voxel sizes from which slices count as thick
_ANISOTROPIC = 2.0  # ratio from which an axis is not yet coarsened with the others
_CT = -200.0  # below, no other modality than CT has values in most cases
_ITERATIONS_2D = 100
_WIDER = 0.2  # of the window of the foreground's intensities, on each side


@dataclass(frozen=True)
class Decision:
    """One row of the plan.

    Attributes:
        name: what is decided.
        value: as a person reads it.
        reason: why.
        settings: ids and their values.
    """

    name: str
    value: str
    reason: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """The grid of the model, about the middle of the image or about the anatomy.

    Attributes:
        size: voxels.
        spacing: mm.
        localised: about the anatomy, which is looked for in every scan.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    localised: bool = False

    @property
    def half(self) -> np.ndarray:
        """Half the extent in mm."""
        return np.asarray(self.size) * self.spacing / 2

    def points(self, anatomy: Anatomy) -> np.ndarray:
        """Positions ``[n, dim]`` of a case's foreground in mm from the middle of the grid."""
        return anatomy.points - _middle(anatomy) if self.localised else anatomy.points


def decide_grid(scans: Sequence[Scan], anatomies: Sequence[Anatomy], unit: str) -> tuple[Grid, Decision]:
    """Choose voxel size and number of voxels.

    The grid holds the foreground of 97 of 100 cases with a margin where images are laid upon their middles. Where that
    would be more than three times the box of the aligned foreground, the anatomy is looked for in every scan. Voxels
    are as small as the median of the images', and as large as it takes for the number that two cores can train.
    """
    spacings = np.array([scan.spacing for scan in scans])
    native = np.median(spacings, axis=0)
    thick = native > _THICK * native.min()
    native[thick] = np.percentile(spacings, 25, axis=0)[thick]  # thin slices would lose most by a coarser grid
    box = np.nanmax([case.high - case.low for case in anatomies], axis=0)
    grid, coarser = _grid(_extent([np.abs([case.low, case.high]).max(axis=0) for case in anatomies]), native)
    if np.prod(grid.half * 2) > _MOST_AROUND * np.prod(box):
        found, coarser = _grid(_extent([(case.high - case.low) / 2 for case in anatomies]), native)
        grid = replace(found, localised=True)
    place = "about the anatomy, which is looked for in every scan" if grid.localised else "about the images' middles"
    ratio = np.prod(grid.half * 2) / np.prod(box)
    limit = f", coarser for at most {_MOST[len(native)]:,}" if coarser else ""
    reason = (
        f"holds the foreground {place}, with a margin; {ratio:.1f} × the box of the aligned foreground. Voxels: the "
        f"median of the images', {_by(native)} {unit}{limit}"
    )
    settings = {"spatial_size": list(grid.size), "spacing": list(grid.spacing)}
    value = f"{_by(grid.size)} voxels of {_by(grid.spacing)} {unit}"
    return grid, Decision("grid", value, reason, settings | ({"localise": True} if grid.localised else {}))


def _extent(halves: list[np.ndarray]) -> np.ndarray:
    """What the grid has to hold; one case far off must not make the grid of all much larger."""
    reach, usual = np.nanmax(halves, axis=0), np.nanquantile(halves, _WITHIN, axis=0)
    extent: np.ndarray = 2 * np.where(reach > _FAR_OFF * usual, usual, reach)
    return extent


def _grid(extent: np.ndarray, native: np.ndarray) -> tuple[Grid, bool]:
    """A grid for an extent, and whether its voxels are coarser than those of the images."""
    floor, spacing = native.min(), native
    while np.prod(_size(extent, spacing)) > _MOST[len(native)]:
        floor *= 1.02
        spacing = np.maximum(native, floor)
    spacing = np.array([float(f"{size:.3g}") for size in spacing])
    return Grid(tuple(_size(extent, spacing)), tuple(spacing.tolist())), bool((spacing > 1.01 * native).any())


def _middle(anatomy: Anatomy) -> np.ndarray:
    middle: np.ndarray = (anatomy.low + anatomy.high) / 2
    return middle


def _size(extent: np.ndarray, spacing: np.ndarray) -> list[int]:
    """Voxels that hold an extent with a margin; as many as the network can halve at every scale."""
    voxels = np.maximum((1 + 2 * _MARGIN) * extent / spacing, extent / spacing + 2 * _LEAST_MARGIN)
    voxels = np.ceil(np.maximum(voxels, np.where(spacing == spacing.min(), _LEAST, 1)))
    while True:  # more voxels may ask for more strides
        strides = np.prod(np.array(_strides(spacing, voxels), dtype=int), axis=0)
        divisible = np.ceil(voxels / strides) * strides
        if (divisible == voxels).all():
            return [int(n) for n in divisible]
        voxels = divisible


def outside(anatomy: Anatomy, grid: Grid) -> tuple[float, float]:
    """Return the share of a case's foreground that lies outside the grid, and how far at most in mm."""
    beyond = np.abs(grid.points(anatomy)) - grid.half
    out = (beyond > 0).any(axis=1)
    return (float(out.mean()), float(np.linalg.norm(beyond.clip(min=0), axis=1).max())) if len(out) else (0.0, 0.0)


def decide_channels(scans: Sequence[Scan]) -> Decision:
    """Take the number of channels that all images have."""
    count = len(scans[0].percentiles)
    reason = "each is scaled by itself; pictures show the first" if count > 1 else "grey images"
    return Decision("channels", str(count), reason, {"in_channels": count} if count > 1 else {})


def decide_refinement(grid: Grid) -> Decision:
    """Choose how long the refinement may take: in 2D twice as long as by default, which costs little there."""
    if len(grid.size) == 2:
        reason = "cheap in 2D, where unusual shapes take their time"
        return Decision("refinement", f"{_ITERATIONS_2D} iterations", reason, {"refine_iterations": _ITERATIONS_2D})
    return Decision("refinement", "as by default", "an iteration in 3D takes its time", {})


def decide_window(scans: Sequence[Scan]) -> Decision:
    """Choose between percentiles of each image and a fixed window, for where values mean something, as in CT.

    Of several channels each has its own.
    """
    usual = "percentiles 1 and 99 of each image become 0 and 1"
    windows = [_window(scans, channel) for channel in range(len(scans[0].percentiles))]
    if not any(windows):
        return Decision("intensities", usual, "values differ from image to image", {})
    values = [f"{window[0]:.0f} to {window[1]:.0f} become 0 and 1" if window else usual for window in windows]
    settings: dict[str, Any] = {"intensity_window": windows if len(windows) > 1 else windows[0]}
    if all(windows):
        settings["intensity_limits"] = [-0.5, 1.5]
    reason = f"values are those of CT (half a percent of the voxels below {_CT:.0f})"
    return Decision("intensities", "; ".join(values), reason, settings)


def _window(scans: Sequence[Scan], channel: int) -> list[float] | None:
    """The window of a channel whose values are those of CT."""
    low = np.median([scan.percentiles[channel][1] for scan in scans])
    if low > _CT or not all(scan.whole[channel] for scan in scans):
        return None
    inside = np.concatenate([scan.foreground[channel] for scan in scans])
    first, last = np.percentile(inside, [0.5, 99.5])
    wider = _WIDER * (last - first)
    return [float(round(first - wider)), float(round(last + wider))]


def decide_augmentation(anatomies: Sequence[Anatomy], grid: Grid, unit: str) -> Decision:
    """Choose how far training images are shifted: as far as the anatomy is found from its usual place."""
    with np.errstate(invalid="ignore"):
        centres = np.array([_middle(case) for case in anatomies])
    spread = 0.0 if grid.localised else float(np.nanmean(np.nanstd(centres, axis=0)))
    shift = float(np.clip(2 * spread, 2 * min(grid.spacing), 0.1 * 2 * grid.half.min()))
    shift = float(f"{shift:.2g}")
    usual = f"twice the spread of the anatomy's place ({spread:.2g} {unit})"
    reason = f"{'what the search may be off' if grid.localised else usual}; no mirroring, since labels may have sides"
    ranges = {"translation": shift, "rotation": 0.26, "scale": 0.1}
    value = f"shifts to {shift:g} {unit}, rotations to 15°, scales to 10 %"
    return Decision("augmentation", value, reason, {"augmentation_ranges": ranges})


def decide_architecture(grid: Grid) -> Decision:
    """Choose where the network coarsens which axis, by voxel sizes that differ."""
    strides = _strides(np.asarray(grid.spacing), np.asarray(grid.size, dtype=float))
    sizes = np.asarray(grid.spacing)
    kernels = []
    for stride in strides:
        sizes = sizes * stride
        kernels.append([1 if size > _ANISOTROPIC * sizes.min() else 3 for size in sizes / np.asarray(stride)])
    plain = all(len(set(stride)) == 1 for stride in strides) and all(set(kernel) == {3} for kernel in kernels)
    if plain:
        return Decision("architecture", "every axis is halved thrice", "voxels are about as long as wide", {})
    settings = {"itn_kernels": kernels, "itn_strides": strides}
    reason = "an axis with coarser voxels is halved later, a short one fewer times"
    return Decision("architecture", f"strides {strides}", reason, settings)


def _strides(spacing: np.ndarray, size: np.ndarray) -> list[list[int]]:
    """Strides scale by scale: an axis is halved once its voxels are no longer twice as coarse as the others."""
    strides = [[1] * len(spacing)]
    spacing, size = spacing.astype(float), size.astype(float)
    for _ in range(_SCALES - 1):
        stride = np.where((spacing <= _ANISOTROPIC * spacing.min()) & (size >= 8), 2, 1)
        if (stride == 1).all():
            stride = np.where(spacing == spacing.min(), 2, 1)
        strides.append([int(n) for n in stride])
        spacing, size = spacing * stride, size / stride
    return strides


def _by(values: Sequence[float] | np.ndarray) -> str:
    return " × ".join(f"{value:.3g}" for value in values)
