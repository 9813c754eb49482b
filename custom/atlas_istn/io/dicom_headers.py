# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Headers of a series, made valid for objects that are added to its study.

Hospital headers break the standard in many ways, and what is copied from them has to keep it: other tools refuse an
object with a wrong date. Text becomes UTF-8, what can be understood becomes what was meant, and the rest is left empty.
The log names the tags, and never a value.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.config import RAISE
from pydicom.datadict import dictionary_has_tag, dictionary_VM, dictionary_VR, keyword_for_tag
from pydicom.multival import MultiValue
from pydicom.valuerep import DA, IS, TM, DSfloat, validate_value

from ..errors import InputError
from .dicom import Series
from .dicom_files import Frame, read_dataset, silent

__all__ = ["series_number", "source_headers"]

logger = logging.getLogger(__name__)

_GREATEST = 2**31 - 1  # that an integer string holds
_REFERRED = ("StudyInstanceUID", "SOPInstanceUID", "SOPClassUID")
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "ReferringPhysicianName",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)


def source_headers(series: Series, *required: str) -> list[pydicom.Dataset]:
    """Read the headers of a series as objects need them that refer to it.

    Args:
        series: the series.
        required: keywords of identifiers that an object needs besides those of study and images.

    Returns:
        One dataset without pixels for each file, in the order of `Series.paths`: valid, in UTF-8, with one orientation
        for all images, and without private tags. Tags that the objects must have are there, if empty.

    Raises:
        InputError: an identifier is missing that the objects refer to.
    """
    firsts = {frame.path: frame for frame in reversed(series.frames)}
    changed: set[str] = set()
    headers = []
    with silent():
        for path in series.paths:
            header = read_dataset(path)
            if lacking := [keyword for keyword in (*_REFERRED, *required) if not header.get(keyword)]:
                raise InputError(
                    f"{series.folder}: a DICOM slice has no {', '.join(lacking)}, which added DICOM objects refer to. "
                    f"Expected complete headers. Export the series again, or use output_format nifti."
                )
            changed |= _make_valid(header)
            _complete(header, series, firsts[path])
            headers.append(header)
    if changed:
        logger.warning(
            "%s: values of these DICOM tags break the standard; they are corrected or empty in the objects that are "
            "added to the study: %s",
            series.folder,
            ", ".join(sorted(changed)),
        )
    return headers


def series_number(header: pydicom.Dataset, offset: int) -> int:
    """The number of an added series: that of the source and an offset, or the offset where that is too great.

    Args:
        header: of the source, as `source_headers` gives it.
        offset: added, so that the new series is listed after the images.
    """
    number = int(header.get("SeriesNumber") or 0)
    return number + offset if 0 <= number <= _GREATEST - offset else offset


def _complete(header: pydicom.Dataset, series: Series, frame: Frame) -> None:
    """Add what a header may lack, and the geometry of the series in place of its own."""
    for keyword in _MAY_BE_EMPTY:
        header.setdefault(keyword, "")
    header.Modality = header.get("Modality") or "OT"
    header.SpecificCharacterSet = "ISO_IR 192"
    first = series.frames[0]
    distance = _decimals(np.linalg.norm(series.affine[:3, :1], axis=0))[0]
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if groups:
        for group in groups:
            for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
                group.pop(keyword, None)
        header.setdefault("SharedFunctionalGroupsSequence", [pydicom.Dataset()])
        shared = header.SharedFunctionalGroupsSequence[0]
        measures, orientation = pydicom.Dataset(), pydicom.Dataset()
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
        measures.SliceThickness = measures.SpacingBetweenSlices = distance
    else:
        measures = orientation = header
        header.ImagePositionPatient = _decimals(frame.position)
        header.SliceThickness = header.get("SliceThickness") or distance
    measures.PixelSpacing = _decimals(first.spacing)
    orientation.ImageOrientationPatient = _decimals(_at_right_angles(first.orientation))


def _at_right_angles(orientation: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Directions of rows and columns, without what rounding has made of them."""
    row, column = orientation.reshape(2, 3)
    row = row / np.linalg.norm(row)
    column = column - (column @ row) * row
    return np.concatenate([row, column / np.linalg.norm(column)])


def _decimals(numbers: Iterable[float]) -> list[DSfloat]:
    return [DSfloat(float(number), auto_format=True) for number in numbers]


def _make_valid(dataset: pydicom.Dataset) -> set[str]:
    """Correct or empty what breaks the standard, in sequences too; returns the keywords of these tags."""
    changed: set[str] = set()
    for tag in list(dataset.keys()):
        if tag.is_private or not dictionary_has_tag(tag):
            del dataset[tag]
            continue
        keyword, kind = keyword_for_tag(tag), dictionary_VR(tag)
        try:
            value = dataset[tag].value
        except Exception:  # no number where one has to be, and the like; pydicom raises many types
            value, changed = "", {*changed, keyword}
        if kind == "SQ":
            for item in value:
                changed |= _make_valid(item)
        elif kind in _CORRECTIONS:
            several = isinstance(value, MultiValue)
            texts = [str(item) for item in value] if several else ["" if value is None else str(value)]
            valid = [_valid(keyword, kind, text) for text in texts]
            if valid != texts:
                changed.add(keyword)
            if several and (dictionary_VM(tag) == "1" or not all(valid)):
                changed.add(keyword)
                valid = [""]
            # Text is no longer in the characters of the source, and a number may have been stored as text.
            dataset.add_new(tag, kind, valid if len(valid) > 1 else valid[0])
    return changed


def _valid(keyword: str, kind: str, text: str) -> str:
    """The text as the standard allows it for a tag of this kind; empty where there is no such text."""
    for candidate in [_sex(text)] if keyword == "PatientSex" else [text, _CORRECTIONS[kind](text)]:
        try:
            validate_value(kind, candidate, RAISE)
            if candidate and kind in _CONVERSIONS:
                _CONVERSIONS[kind](candidate)
        except (ValueError, TypeError, OverflowError):
            continue
        if "\ufffd" not in candidate and candidate == _without_controls(candidate):
            return candidate
    return ""


def _without_controls(text: str) -> str:
    return re.sub(r"[\x00-\x08\x0b\x0e-\x1f\x7f]", "", text)


def _digits(text: str) -> str:
    """A date or time without the separators of other standards, and of old versions of this one."""
    return re.sub(r"[-./: ]", "", text)


def _sex(text: str) -> str:
    letter = text.strip().upper()[:1]
    return letter if letter in ("M", "F", "O") else ""


def _number(text: str) -> str:
    try:
        return str(DSfloat(float(text), auto_format=True))
    except (ValueError, OverflowError):
        return ""


_CONVERSIONS: dict[str, Callable[[str], object]] = {"DA": DA, "TM": TM, "DS": float, "IS": IS}
_CORRECTIONS: dict[str, Callable[[str], str]] = {
    **dict.fromkeys(("LO", "LT", "PN", "SH", "ST", "UC", "UT"), _without_controls),
    **dict.fromkeys(("AE", "IS"), str.strip),
    **dict.fromkeys(("AS", "CS"), lambda text: text.strip().upper()),
    **dict.fromkeys(("DA", "DT", "TM"), _digits),
    "DS": _number,
}
"""Value representation → what turns common mistakes into what was meant."""
