# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""DICOM series as volumes: the order of their images, whether they form a regular grid, and their voxels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom

from ..errors import InputError
from ..spatial.world import LPS
from .dicom_files import Frame, functional_group, read_dataset, read_frames, silent

__all__ = ["Series", "read_series", "read_voxels"]

_SAME_POSITION = 1e-3  # mm
_SAME_ORIENTATION = 1e-3  # difference of direction cosines: 0.06 degrees, more than their rounding
_SAME_SPACING = 1e-3  # relative
_IRREGULAR = 0.1  # of the slice distance; table feeds vary by less than this
_ROUNDED = 0.051  # mm: positions with one decimal, which is much for thin slices,
_MOST = 0.25  # but never this share of the slice distance


@dataclass(frozen=True)
class Series:
    """The images of one regular DICOM volume.

    Attributes:
        folder: where they lie.
        frames: along the slice normal (row direction × column direction).
    """

    folder: Path
    frames: Sequence[Frame]

    @property
    def paths(self) -> list[Path]:
        """The files, each once, in the order of their first image."""
        return list(dict.fromkeys(frame.path for frame in self.frames))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows and columns."""
        return len(self.frames), *self.frames[0].size

    @cached_property
    def affine(self) -> npt.NDArray[np.float64]:
        """Map from (slice, row, column) to LPS mm; equation C.7.6.2.1-1 of DICOM PS3.3, with a slice axis."""
        first, last = self.frames[0], self.frames[-1]
        along_row, along_column = first.orientation.reshape(2, 3)
        normal = np.cross(along_row, along_column)
        distance = np.linalg.norm(last.position - first.position) / (len(self.frames) - 1)
        affine = np.eye(4)
        affine[:3, 0] = normal / np.linalg.norm(normal) * distance
        affine[:3, 1] = along_column * first.spacing[0]
        affine[:3, 2] = along_row * first.spacing[1]
        affine[:3, 3] = first.position
        return affine


def read_series(folder: str | os.PathLike[str]) -> Series:
    """Read the geometry of the one DICOM series in a folder; sub-folders are not searched.

    Raises:
        InputError: the folder holds no series or several, of several patients, or its images do not form one regular
            grid: slices missing or doubled, orientations or sizes that differ, irregular distances, a tilted gantry.
    """
    frames = read_frames(folder)
    _check_one_series(folder, frames)
    _check_alike(folder, frames)
    row, column = frames[0].orientation.reshape(2, 3)
    normal = np.cross(row, column)
    frames.sort(key=lambda frame: float(frame.position @ normal))
    positions = np.stack([frame.position for frame in frames])
    _check_distances(folder, positions @ normal)
    _check_tilt(folder, positions @ np.stack([row, column], axis=1), limit=0.5 * float(frames[0].spacing.min()))
    return Series(Path(folder), frames)


def read_voxels(
    series: Series,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Read the voxels of a series.

    Returns:
        Rescaled values ``[X, Y, Z]`` along columns, rows and slices; the voxel to RAS world map in mm; and the mask of
        the voxels that the headers declare as padding.

    Raises:
        InputError: pixels are damaged or compressed in a way that cannot be read.
    """
    voxels = np.empty(series.shape, dtype=np.float32)
    padding = np.zeros(series.shape, dtype=bool)
    places: dict[Path, dict[int, int]] = {}
    for index, frame in enumerate(series.frames):
        places.setdefault(frame.path, {})[frame.number] = index
    for path, indices in places.items():
        try:
            with silent():
                dataset = read_dataset(path, pixels=True)
                stored = _stored(dataset, path)
                for number, index in indices.items():
                    voxels[index], padding[index] = _rescaled(dataset, number, stored)
        except Exception as error:  # each decoder has its own exceptions
            syntax = pydicom.uid.UID(dataset.file_meta.TransferSyntaxUID).name
            raise InputError(
                f"{series.folder}: the pixels of a DICOM file cannot be read ({type(error).__name__}; {syntax}). "
                f"Expected complete files, compressed in none of the rarer ways. Export the series again, uncompressed."
            ) from None
    return voxels.transpose(), LPS @ series.affine[:, [2, 1, 0, 3]], padding.transpose()


def _stored(dataset: pydicom.Dataset, path: Path) -> npt.NDArray[np.number]:
    """The values as stored ``[frame, row, column]``."""
    shape = (-1, int(dataset.Rows), int(dataset.Columns))
    try:
        return np.asarray(dataset.pixel_array).reshape(shape)
    except Exception:
        if not dataset.file_meta.TransferSyntaxUID.is_compressed or int(dataset.get("NumberOfFrames") or 1) > 1:
            raise
    # ITK knows the lossless JPEG of hospitals, which pydicom needs further packages for; its values are rescaled.
    import itk  # loading it takes seconds

    slope, intercept = _rescaling(dataset, 0)
    return (itk.array_from_image(itk.imread(str(path), itk.D)).reshape(shape) - intercept) / slope


def _rescaled(
    dataset: pydicom.Dataset, number: int, stored: npt.NDArray[np.number]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Values and declared padding of one image."""
    slope, intercept = _rescaling(dataset, number)
    low, high = _padding(dataset)
    plane = stored[number]
    return plane * slope + intercept, (plane >= low) & (plane <= high)


def _rescaling(dataset: pydicom.Dataset, number: int) -> tuple[float, float]:
    group = functional_group(dataset, number, "PixelValueTransformationSequence") or dataset
    slope, intercept = group.get("RescaleSlope"), group.get("RescaleIntercept")
    return (1.0 if slope is None else float(slope)), (0.0 if intercept is None else float(intercept))


def _padding(dataset: pydicom.Dataset) -> tuple[float, float]:
    """Limits of the stored values that are padding; an empty interval if none are."""
    ends = [dataset.get(keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if ends[0] is None:
        return np.inf, -np.inf
    bits, signed = int(dataset.BitsAllocated), bool(dataset.PixelRepresentation)
    # Scanners write -2000 as 63536 too, in the type of numbers without sign.
    values = [(int(end) + (2 ** (bits - 1) if signed else 0)) % 2**bits for end in ends if end is not None]
    values = [value - (2 ** (bits - 1) if signed else 0) for value in values]
    return min(values), max(values)


def _check_one_series(folder: str | os.PathLike[str], frames: Sequence[Frame]) -> None:
    """Images of one series of one patient, each once."""
    count = len({frame.series for frame in frames})
    if count > 1:
        raise InputError(
            f"{folder}: {count} DICOM series in one folder. Expected one. Move each series into a folder of its own."
        )
    for kind, owners in (
        ("patients", {frame.patient for frame in frames}),
        ("studies", {frame.study for frame in frames}),
        ("frames of reference", {frame.world for frame in frames}),
    ):
        if len(owners - {""}) > 1:
            raise InputError(
                f"{folder}: the slices of one DICOM series belong to {len(owners)} {kind}. Expected one. Export the "
                f"series again; do not segment it before it is clear whose it is."
            )
    files = {(frame.instance, frame.path) for frame in frames if frame.instance}
    repeated = len(files) - len({instance for instance, _ in files})
    if repeated:
        raise InputError(
            f"{folder}: {repeated} of {len(files)} DICOM files have the identifier of another one (SOPInstanceUID). "
            f"Expected a different one in each. Export the series again."
        )


def _check_alike(folder: str | os.PathLike[str], frames: Sequence[Frame]) -> None:
    """At least two images with one size, pixel spacing and orientation."""
    if len(frames) == 1:
        raise InputError(
            f"{folder}: one DICOM slice. Expected a volume of two or more. Check that the copy is complete."
        )
    first = frames[0]
    turned = sum(np.abs(frame.orientation - first.orientation).max() > _SAME_ORIENTATION for frame in frames)
    if turned:
        raise InputError(
            f"{folder}: mixed orientations, {turned} of {len(frames)} DICOM slices are turned against the first. "
            f"Expected parallel slices. Move scouts and other orientations into folders of their own."
        )
    differ = sum(
        frame.size != first.size or not np.allclose(frame.spacing, first.spacing, rtol=_SAME_SPACING, atol=0)
        for frame in frames
    )
    if differ:
        raise InputError(
            f"{folder}: {differ} of {len(frames)} DICOM slices differ from the first in size or pixel spacing. "
            f"Expected one grid. Move them into a folder of their own."
        )


def _check_distances(folder: str | os.PathLike[str], positions: npt.NDArray[np.float64]) -> None:
    """Positions on a straight line of equal steps; they ascend, in mm along the normal."""
    gaps = np.diff(positions)
    doubled = int((gaps < _SAME_POSITION).sum())
    if doubled:
        raise InputError(
            f"{folder}: duplicate positions, {doubled} of {len(positions)} DICOM slices lie where another one lies. "
            f"Expected one slice at each position. Remove the copies, or split the series (echoes, time points)."
        )
    multiples = np.maximum(np.round(gaps / np.quantile(gaps, 0.5, method="lower")), 1)
    places = np.concatenate([[0.0], np.cumsum(multiples)])
    step, start = np.polyfit(places, positions, 1)
    furthest = float(np.abs(positions - start - step * places).max())
    if furthest > min(max(_IRREGULAR * step, _ROUNDED), _MOST * step):
        raise InputError(
            f"{folder}: irregular slice distances, from {gaps.min():g} to {gaps.max():g} mm, up to {furthest:.3g} mm "
            f"off a regular grid. Expected equal distances within {_IRREGULAR:.0%}. Check that no slice is missing, or "
            f"resample the series to a regular grid."
        )
    missing = int((multiples - 1).sum())
    if missing:
        widest = int(gaps.argmax())
        raise InputError(
            f"{folder}: missing slices, {missing} in a DICOM stack of {len(positions)} that lie {step:.4g} mm apart; "
            f"the widest gap is from {positions[widest]:g} to {positions[widest + 1]:g} mm. Expected equal distances. "
            f"Copy the series again."
        )


def _check_tilt(folder: str | os.PathLike[str], in_plane: npt.NDArray[np.float64], limit: float) -> None:
    """Slices straight above each other; ``in_plane`` holds their origins along row and column, in mm."""
    drift = float(np.linalg.norm(in_plane - in_plane[0], axis=1).max())
    if drift > limit:
        raise InputError(
            f"{folder}: the DICOM slices are shifted against each other by up to {drift:.3g} mm in their plane "
            f"(gantry tilt). Expected a straight stack, to half a pixel ({limit:.3g} mm). Resample the series to a "
            f"straight grid."
        )
