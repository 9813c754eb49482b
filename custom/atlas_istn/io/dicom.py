# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""DICOM series folders: which files belong to the volume, in which order, and whether they form a regular grid.

Messages name the folder and positions only. File names and tags of slices often carry identifiers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from monai.data import ITKReader

from ..errors import InputError

__all__ = ["SeriesReader", "is_series_folder", "series_slices"]

_TAGS = [
    "SeriesInstanceUID",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "NumberOfFrames",
]
_SAME_POSITION = 1e-3  # mm
_SAME_ORIENTATION = 1e-3  # difference of direction cosines: 0.06 degrees, more than their rounding
_IRREGULAR = 0.1  # of the slice distance; scanners round positions and table feeds to less than this


class SeriesReader(ITKReader):
    """MONAI's ITK reader for a series folder, with the slices in the order of their positions."""

    def read(self, data: str | os.PathLike[str], **_: Any) -> Any:
        """Read the one series of a folder as a float32 ITK volume.

        Args:
            data: the folder.

        Raises:
            InputError: see :func:`series_slices`.
        """
        import itk  # loading it takes seconds

        # Slices may differ in their rescale slope: in the type of the first one the others could be cut off.
        return itk.imread([str(path) for path in series_slices(data)], itk.F)


def is_series_folder(folder: str | os.PathLike[str]) -> bool:
    """Whether a DICOM file lies directly in this folder."""
    return any(_is_dicom(path) for path in Path(folder).iterdir())


def series_slices(folder: str | os.PathLike[str]) -> list[Path]:
    """Files of the one DICOM series in a folder, ordered along the slice normal (row direction × column direction).

    Args:
        folder: path of the folder; sub-folders are not searched.

    Raises:
        InputError: if the folder holds no series or several, or if its slices do not form one regular grid: slices
            missing or doubled, orientations or sizes that differ, irregular distances, a tilted gantry.
    """
    slices = _read_headers(Path(folder))
    _check_alike(folder, slices)
    row, column = slices[0].orientation.reshape(2, 3)
    normal = np.cross(row, column)
    slices.sort(key=lambda item: float(item.position @ normal))
    positions = np.stack([item.position for item in slices])
    _check_distances(folder, positions @ normal)
    _check_tilt(folder, positions @ np.stack([row, column], axis=1), limit=0.5 * float(slices[0].spacing.min()))
    return [item.path for item in slices]


@dataclass(frozen=True)
class _Slice:
    """One file: its series, its size in pixels, its geometry in LPS mm."""

    path: Path
    series: str
    size: tuple[int, int]
    spacing: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]
    position: npt.NDArray[np.float64]


def _is_dicom(path: Path) -> bool:
    return path.is_file() and pydicom.misc.is_dicom(path)


def _read_headers(folder: Path) -> list[_Slice]:
    slices = []
    for path in sorted(folder.iterdir()):
        if not _is_dicom(path):
            if path.suffix.lower() == ".dcm":
                raise InputError(
                    f"{folder}: a file with the suffix .dcm is not readable DICOM. Expected complete DICOM files. "
                    f"Copy the series again."
                )
            continue
        item = _read_header(folder, path)
        if item is not None:
            slices.append(item)
    if not slices:
        raise InputError(
            f"{folder}: no readable DICOM series. Expected a folder with the image files of one series directly in "
            f"it. Check the path, or unpack the export."
        )
    return slices


def _read_header(folder: Path, path: Path) -> _Slice | None:
    """Geometry of one file, or None for a DICOM object that is no image, such as a report or a DICOMDIR."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
        if "Rows" not in header:
            return None
        single = int(header.get("SamplesPerPixel", 1)) == 1 and int(header.get("NumberOfFrames") or 1) == 1
        item = _Slice(
            path=path,
            series=str(header.SeriesInstanceUID),
            size=(int(header.Rows), int(header.Columns)),
            spacing=np.array(header.PixelSpacing, dtype=np.float64).reshape(2),
            orientation=np.array(header.ImageOrientationPatient, dtype=np.float64).reshape(6),
            position=np.array(header.ImagePositionPatient, dtype=np.float64).reshape(3),
        )
    except Exception as error:  # pydicom raises many types on damaged files
        raise InputError(
            f"{folder}: a DICOM file has a damaged header or no position, orientation, pixel spacing or series "
            f"identifier. Expected the slices of a volume (CT, MR and the like). Export the series again, without "
            f"secondary captures."
        ) from error
    if not single:
        raise InputError(
            f"{folder}: a DICOM file is a colour or multi-frame image. Expected one grey slice per file. Convert the "
            f"series to NIfTI."
        )
    return item


def _check_alike(folder: str | os.PathLike[str], slices: list[_Slice]) -> None:
    """One series, and at least two slices with one size, pixel spacing and orientation."""
    count = len({item.series for item in slices})
    if count > 1:
        raise InputError(
            f"{folder}: {count} DICOM series in one folder. Expected one. Move each series into a folder of its own."
        )
    if len(slices) == 1:
        raise InputError(
            f"{folder}: one DICOM slice. Expected a volume of two or more. Check that the copy is complete."
        )
    first = slices[0]
    turned = sum(np.abs(item.orientation - first.orientation).max() > _SAME_ORIENTATION for item in slices)
    if turned:
        raise InputError(
            f"{folder}: mixed orientations, {turned} of {len(slices)} DICOM slices are turned against the first. "
            f"Expected parallel slices. Move scouts and other orientations into folders of their own."
        )
    differ = sum(item.size != first.size or not np.allclose(item.spacing, first.spacing) for item in slices)
    if differ:
        raise InputError(
            f"{folder}: {differ} of {len(slices)} DICOM slices differ from the first in size or pixel spacing. "
            f"Expected one grid. Move them into a folder of their own."
        )


def _check_distances(folder: str | os.PathLike[str], positions: npt.NDArray[np.float64]) -> None:
    """Equal distances between neighbours; ``positions`` ascend, in mm along the normal."""
    gaps = np.diff(positions)
    doubled = int((gaps < _SAME_POSITION).sum())
    if doubled:
        raise InputError(
            f"{folder}: duplicate positions, {doubled} of {len(positions)} DICOM slices lie where another one lies. "
            f"Expected one slice at each position. Remove the copies, or split the series (echoes, time points)."
        )
    step = float(np.quantile(gaps, 0.5, method="lower"))
    multiples = np.round(gaps / step)
    missing = int((multiples - 1).clip(min=0).sum())
    irregular = bool((np.abs(gaps - multiples * step) > _IRREGULAR * step).any())
    if missing and not irregular:
        widest = int(gaps.argmax())
        raise InputError(
            f"{folder}: missing slices, {missing} in a DICOM stack of {len(positions)} that lie {step:g} mm apart; the "
            f"widest gap is from {positions[widest]:g} to {positions[widest + 1]:g} mm. Expected equal distances. "
            f"Copy the series again."
        )
    if irregular:
        raise InputError(
            f"{folder}: irregular slice distances, from {gaps.min():g} to {gaps.max():g} mm. Expected equal distances "
            f"within {_IRREGULAR:.0%}. Check that no slice is missing, or resample the series to a regular grid."
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
