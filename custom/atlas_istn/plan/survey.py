# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What is measured of every case: once of image and label as they are stored, once of the classes that are chosen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import Orientation
from scipy import ndimage

from ..errors import InputError, message_of
from ..io.channels import in_folder
from ..io.geometry import check_same_grid
from ..io.label_table import LabelValues
from ..io.loading import PixelSize, label_classes, read_volume
from ..io.names import is_png
from ..topology.signature import Signature
from .discover import Case

__all__ = ["Anatomy", "Scan", "dimensions", "look_at_anatomy", "look_at_scan"]

_SAMPLES = 5000  # intensities of the foreground that are kept of a case
_POINTS = 50_000  # of the foreground that are kept of a case
_PERCENTILES = (0.0, 0.5, 1.0, 50.0, 99.0, 99.5, 100.0)


@dataclass(frozen=True)
class Scan:
    """A case as it is stored, in the order of its axes towards right, anterior and superior (2D: of the file).

    Attributes:
        case: the case.
        shape: voxels.
        spacing: mm per voxel; 1 of a PNG whose pixel size nobody states.
        axes: orientation of the stored axes, such as ``"LPS"``; empty in 2D.
        values: of the label.
        digest: of the voxels of the image.
        percentiles: of the intensities of each channel: 0, 0.5, 1, 50, 99, 99.5, 100.
        whole: whether all intensities of a channel are whole numbers.
        foreground: some intensities within labels, ``[C, n]``.
    """

    case: Case
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    axes: str
    values: frozenset[int]
    digest: str
    percentiles: tuple[tuple[float, ...], ...]
    whole: tuple[bool, ...]
    foreground: np.ndarray


@dataclass(frozen=True)
class Anatomy:
    """The classes of a case.

    Attributes:
        case: the case.
        volumes: of each class without background, in mm³ (mm²).
        centres: of each, in mm from the middle of the image; NaN where it is absent.
        low: least position of foreground, in mm from the middle of the image, axis by axis.
        high: greatest position.
        signature: topology.
        border: whether labels touch the border of the image.
        points: positions of foreground voxels in mm from the middle, ``[n, dim]``: of all, or evenly chosen ones.
        classes: class index of each point.
    """

    case: Case
    volumes: np.ndarray
    centres: np.ndarray
    low: np.ndarray
    high: np.ndarray
    signature: Signature
    border: bool
    points: np.ndarray
    classes: np.ndarray


def dimensions(folder: Path, case: Case) -> int:
    """Return 2 or 3, by the format or the header of an image.

    Raises:
        InputError: the image cannot be read.
    """
    path = folder / case.image
    if is_png(path):
        return 2
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return 3
    try:
        return 2 if len([n for n in nib.load(path).shape[:3] if n > 1]) == 2 else 3  # a fourth axis holds channels
    except Exception as error:
        raise InputError(f"{path}: the image cannot be read ({message_of(error)}). Copy it again.") from error


def look_at_scan(folder: Path, case: Case, dim: int, pixel_size: PixelSize | None = None) -> Scan:
    """Read image and label of a case; ``pixel_size`` is that of PNG files.

    Raises:
        InputError: one cannot be read, they have different grids, or a label has values that are not whole.
    """
    image = read_volume(in_folder(folder, case.image), dim, pixel_size, channels=None)
    label = read_volume(folder / case.label, dim, pixel_size, label=True)
    check_same_grid(image, label)
    values = np.unique(label.numpy())
    whole = np.round(values)
    if np.abs(values - whole).max() > 1e-3:
        odd = ", ".join(f"{value:.6g}" for value in values[np.abs(values - whole) > 1e-3][:5])
        raise InputError(f"{folder / case.label}: label values that are not whole numbers: {odd}. Correct the label.")
    voxels = image.numpy()
    inside = voxels[:, label.numpy()[0].round() != 0]
    step = max(1, inside.shape[1] // _SAMPLES)
    axes = "" if dim == 2 else "".join(nib.aff2axcodes(np.asarray(image.affine)))
    digest = hashlib.sha1(np.ascontiguousarray(voxels).tobytes(), usedforsecurity=False).hexdigest()
    turned = _turned(image, dim)
    return Scan(
        case,
        tuple(turned.shape[1:]),
        tuple(float(size) for size in np.asarray(turned.pixdim)[:dim]),
        axes,
        frozenset(int(value) for value in whole),
        digest,
        tuple(tuple(float(value) for value in np.percentile(channel, _PERCENTILES)) for channel in voxels),
        tuple(bool((channel == channel.round()).all()) for channel in voxels),
        inside[:, ::step].astype(np.float32),
    )


def look_at_anatomy(
    folder: Path, case: Case, dim: int, label_values: LabelValues, pixel_size: PixelSize | None = None
) -> Anatomy:
    """Measure the classes of a case; ``pixel_size`` is that of PNG files.

    Raises:
        InputError: the label has values that are no class.
    """
    label = _turned(label_classes(read_volume(folder / case.label, dim, pixel_size, label=True), label_values), dim)
    labels = label.numpy()[0].astype(np.int16)
    spacing = np.asarray(label.pixdim)[:dim].astype(float)
    middle = (np.asarray(labels.shape) - 1) / 2
    voxels = np.argwhere(labels > 0)
    points = (voxels - middle) * spacing
    counts = np.bincount(labels.ravel(), minlength=len(label_values))[1:]
    centres = np.full((len(counts), dim), np.nan)
    present = np.flatnonzero(counts)
    if len(present):
        centres[present] = (ndimage.center_of_mass(labels > 0, labels, present + 1) - middle) * spacing
    empty = np.full(dim, np.nan)
    step = max(1, len(points) // _POINTS)
    touching = bool(len(voxels)) and bool(((voxels == 0) | (voxels == np.asarray(labels.shape) - 1)).any())
    return Anatomy(
        case,
        counts * spacing.prod(),
        centres,
        points.min(axis=0) - spacing / 2 if len(points) else empty,
        points.max(axis=0) + spacing / 2 if len(points) else empty,
        Signature.of(labels, len(label_values)),
        touching,
        points[::step].astype(np.float32),
        labels[labels > 0][::step],
    )


def _turned(volume: MetaTensor, dim: int) -> MetaTensor:
    """Axes towards right, anterior, superior, as the preprocessing has them; a 2D image stays as it is."""
    return volume if dim == 2 else Orientation(axcodes="RAS", labels=None)(volume)


def digests(scans: Sequence[Scan]) -> dict[str, list[Scan]]:
    """Scans with the same voxels, by their digest."""
    groups: dict[str, list[Scan]] = {}
    for scan in scans:
        groups.setdefault(scan.digest, []).append(scan)
    return {digest: group for digest, group in groups.items() if len(group) > 1}
