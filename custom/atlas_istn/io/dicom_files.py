# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""DICOM files: which hold images of a volume, and where each image lies.

Messages name folders and positions only, and nothing that the libraries say is shown, in tracebacks neither: file
names, tags and complaints about tags often carry identifiers of a patient.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom

from ..errors import InputError

__all__ = ["IMAGE", "Frame", "functional_group", "read_dataset", "read_frames", "silent", "unquoted", "why_no_image"]

IMAGE = "image of a volume"

_SUFFIXES = (".dcm", ".ima")  # of files that are meant to be DICOM
_STARTS = (b"\x02\x00", b"\x08\x00")  # groups with which a file begins that has no preamble
_OVERLAYS = {  # objects with pixels that are no image, but drawn on one
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "parametric map",
    "1.2.840.10008.5.1.4.1.1.481.2": "radiation dose",
}
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_NO_PIXELS = "DICOM object without an image, such as a report or a directory"
_KINDS = ["SOPClassUID", "Rows", "ImagePositionPatient", "PerFrameFunctionalGroupsSequence"]
_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]

for _library in ("pydicom", "highdicom"):  # what they complain of, they quote
    logging.getLogger(_library).setLevel(logging.CRITICAL)


@contextmanager
def silent() -> Iterator[None]:
    """Show no warnings: those of the DICOM libraries quote values of tags."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def unquoted(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever goes wrong while a DICOM object is made from the headers of a folder into an `InputError`."""
    try:
        with silent():
            yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{folder}: no DICOM object can be made of these headers ({type(error).__name__}). Expected those of CT, "
            f"MR and the like. Use the NIfTI result."
        ) from None


@dataclass(frozen=True)
class Frame:
    """One image of a volume: where it is stored, what it belongs to, its size in pixels, its geometry in LPS mm."""

    path: Path
    number: int
    instance: str
    series: str
    patient: str
    study: str
    world: str
    size: tuple[int, int]
    spacing: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]
    position: npt.NDArray[np.float64]


def why_no_image(path: Path) -> str:
    """Why a file is not read as an image of a DICOM volume.

    Returns:
        The reason; `IMAGE` for a file that is read, and for one that should be and is damaged.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(132)
    except OSError:
        return IMAGE
    declared = start[128:] == b"DICM"
    expected = IMAGE if declared or path.suffix.lower() in _SUFFIXES else "no image of a known format"
    if expected != IMAGE and start[:2] not in _STARTS:
        return expected
    try:
        with silent():
            header = read_dataset(path, _KINDS)
            kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or ""
            has_pixels = "Rows" in header
    except Exception:  # pydicom raises many types on damaged files
        return expected
    if not kind and not has_pixels:
        return expected
    if kind in _OVERLAYS:
        return f"DICOM {_OVERLAYS[kind]}"
    if not has_pixels:  # cut off, if it is of a kind that has them
        return IMAGE if pydicom.uid.UID(kind).name.endswith("Image Storage") else _NO_PIXELS
    captured = f"{kind}.".startswith(f"{_SECONDARY_CAPTURE}.")
    placed = "ImagePositionPatient" in header or "PerFrameFunctionalGroupsSequence" in header
    return "DICOM screenshot" if captured and not placed else IMAGE


def read_frames(folder: str | os.PathLike[str]) -> list[Frame]:
    """Read the geometry of all images of volumes that lie directly in a folder, in no special order.

    Raises:
        InputError: there are none, or one is damaged, coloured, or without a place in space.
    """
    paths = [path for path in _files(Path(folder)) if why_no_image(path) == IMAGE]
    if not paths:
        raise InputError(
            f"{folder}: no readable DICOM series. Expected a folder with the image files of one series directly in "
            f"it. Check the path, or unpack the export."
        )
    return [frame for path in paths for frame in _frames_of(folder, path)]


def read_dataset(path: Path, tags: Sequence[str] | None = None, pixels: bool = False) -> pydicom.Dataset:
    """Read a DICOM file, also one without preamble or without the group that says how it is encoded.

    Args:
        path: the file.
        tags: keywords of what is needed; without them all.
        pixels: read them too.
    """
    dataset = pydicom.dcmread(path, force=True, stop_before_pixels=not pixels, specific_tags=tags)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        syntaxes = pydicom.uid.ImplicitVRLittleEndian, pydicom.uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntaxes[not implicit] if little else pydicom.uid.ExplicitVRBigEndian
    return dataset


def functional_group(dataset: pydicom.Dataset, frame: int, name: str) -> pydicom.Dataset | None:
    """The group of this name for one frame of a multi-frame image, be it its own or shared by all."""
    for groups, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = dataset.get(groups)
        if items and index < len(items) and items[index].get(name):
            return items[index][name][0]
    return None


def _files(folder: Path) -> list[Path]:
    """Files directly in a folder, without hidden ones such as the ``._`` files of a Mac."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _frames_of(folder: str | os.PathLike[str], path: Path) -> list[Frame]:
    try:
        with silent():
            header = read_dataset(path, _TAGS)
            count = int(header.get("NumberOfFrames") or 1)
            grouped = "PerFrameFunctionalGroupsSequence" in header
            grey = str(header.get("PhotometricInterpretation") or "MONOCHROME2").startswith("MONOCHROME")
            usable = grey and int(header.get("SamplesPerPixel") or 1) == 1 and (grouped or count == 1)
            frames = [_frame(path, header, number if grouped else None) for number in range(count)] if usable else []
    except Exception:  # pydicom raises many types on damaged files
        raise InputError(
            f"{folder}: a DICOM file has a damaged header or no position, orientation, pixel spacing or series "
            f"identifier. Expected the slices of a volume (CT, MR and the like). Export the series again, without "
            f"secondary captures."
        ) from None
    if not usable:
        raise InputError(
            f"{folder}: a DICOM file is a colour image, or holds several images without saying where each lies. "
            f"Expected grey slices. Convert the series to NIfTI."
        )
    return frames


def _frame(path: Path, header: pydicom.Dataset, number: int | None) -> Frame:
    def values(group: str, keyword: str, count: int) -> npt.NDArray[np.float64]:
        source: Any = header if number is None else functional_group(header, number, group)
        numbers = np.array(source[keyword].value, dtype=np.float64).reshape(count)
        if not np.isfinite(numbers).all():
            raise ValueError(keyword)
        return numbers

    return Frame(
        path=path,
        number=number or 0,
        instance=str(header.get("SOPInstanceUID", "")),
        series=str(header.SeriesInstanceUID),
        patient=str(header.get("PatientID") or "").strip(),
        study=str(header.get("StudyInstanceUID") or ""),
        world=str(header.get("FrameOfReferenceUID") or ""),
        size=(int(header.Rows), int(header.Columns)),
        spacing=values("PixelMeasuresSequence", "PixelSpacing", 2),
        orientation=values("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        position=values("PlanePositionSequence", "ImagePositionPatient", 3),
    )
