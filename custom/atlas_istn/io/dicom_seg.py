# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Labelmaps as DICOM Segmentation objects that refer to the images of their series.

What a label shows is told by coded concepts. The object takes patient and study from the series, as the standard
demands; file names and messages hold none of it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
from nibabel.orientations import apply_orientation, inv_ornt_aff
from pydicom.sr.coding import Code

from .. import __version__
from ..errors import InputError
from .dicom import series_slices
from .files import write_whole

__all__ = ["SegmentSpec", "segment_specs", "write_dicom_seg"]

_STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")
_ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SAME_GRID = 0.1  # voxels by which corners may differ; positions in DICOM are rounded decimals
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
_SERIES_OFFSET = 1000  # added to the number of the source series, so that the segmentation is listed after the images


@dataclass(frozen=True)
class SegmentSpec:
    """How DICOM describes one label.

    Args:
        label: name that viewers show.
        category: what kind of thing it is, of context group 7150.
        type: what it is, such as the organ.
        modifier: which part or side of it.
    """

    label: str
    category: Code = _STRUCTURE
    type: Code = _STRUCTURE
    modifier: Code | None = None


def segment_specs(
    label_names: Mapping[int, str], segment_codes: Mapping[str, Mapping[str, Sequence[str]]]
) -> list[SegmentSpec]:
    """Describe every label but the background.

    Args:
        label_names: class index → name, background (0) included.
        segment_codes: name → ``{"category": CODE, "type": CODE, "modifier": CODE}``, each optional, where CODE is
            ``[value, scheme, meaning]``, e.g. ``["5366008", "SCT", "Hippocampus"]``. A label without an entry becomes
            an "Anatomical Structure" that only its name tells from others.

    Returns:
        One item for each class from 1, in their order.

    Raises:
        InputError: an entry has another key, or a code is not made of three parts.
    """
    names = dict(sorted((int(index), name) for index, name in label_names.items() if int(index) > 0))
    return [
        SegmentSpec(name, **{key: _code(name, key, parts) for key, parts in segment_codes.get(name, {}).items()})
        for name in names.values()
    ]


def _code(label: str, key: str, parts: Sequence[str]) -> Code:
    if key not in ("category", "type", "modifier") or isinstance(parts, str) or len(parts) != 3:
        raise InputError(
            f"segment_codes, label {label}: '{key}: {parts}' describes no concept. Expected category, type or "
            f'modifier, with three parts such as ["5366008", "SCT", "Hippocampus"]. Correct the entry.'
        )
    return Code(*(str(part) for part in parts))


def write_dicom_seg(
    labelmap: npt.NDArray[np.integer[Any]],
    affine: npt.NDArray[np.floating[Any]],
    series_dir: str | os.PathLike[str],
    path: str | os.PathLike[str],
    segments: Sequence[SegmentSpec],
) -> None:
    """Write a labelmap as DICOM SEG with one binary segment for each label.

    The frames lie on those of the series, found by the geometry in the headers and not by the order of files or axes.
    Frames without any voxel of a segment are left out.

    Args:
        labelmap: class indices ``[X, Y, Z]`` on the grid of the series, axes in any order and direction; 0 is
            background.
        affine: voxel to RAS world map of the labelmap in mm, ``[4, 4]``.
        series_dir: folder of the source images, one regular series.
        path: ``.dcm``.
        segments: descriptions of the classes 1, 2, …

    Raises:
        InputError: the series has no regular grid (see `series_slices`) or lacks a tag that the references need, the
            labelmap lies on another grid or has more classes than descriptions, or the file cannot be written.
    """
    slices = [pydicom.dcmread(file, stop_before_pixels=True) for file in series_slices(series_dir)]
    _complete(slices, series_dir)
    frames = _on_frames(labelmap, affine, slices, series_dir)
    if frames.max() > len(segments):
        raise InputError(
            f"{series_dir}: the labelmap holds the class {frames.max()}, but {len(segments)} classes are described. "
            f"Expected a description of each (label_names). Use the data config of the model."
        )
    segmentation = _segmentation(frames.astype(np.uint8 if len(segments) < 256 else np.uint16), slices, segments)
    write_whole(path, segmentation.save_as)


def _complete(slices: Sequence[pydicom.Dataset], series_dir: str | os.PathLike[str]) -> None:
    """Fill in tags that a series may lack; without the identifiers of its frame and images there is no reference."""
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID", "SOPClassUID"):
        if not all(item.get(keyword) for item in slices):
            raise InputError(
                f"{series_dir}: a DICOM slice has no {keyword}, which a DICOM SEG refers to. Expected complete "
                f"headers. Export the series again, or use output_format nifti."
            )
    distance = round(float(np.linalg.norm(_series_affine(slices)[:3, 0])), 6)
    for item in slices:
        item.SliceThickness = item.get("SliceThickness") or distance
        for keyword in _MAY_BE_EMPTY:
            item.setdefault(keyword, "")


def _on_frames(
    labelmap: npt.NDArray[np.integer[Any]],
    affine: npt.NDArray[np.floating[Any]],
    slices: Sequence[pydicom.Dataset],
    series_dir: str | os.PathLike[str],
) -> npt.NDArray[np.integer[Any]]:
    """The labelmap as ``[slice, row, column]`` of the series; only axes are swapped and flipped."""
    grid = _series_affine(slices)
    shape = (len(slices), int(slices[0].Rows), int(slices[0].Columns))
    to_grid = np.linalg.inv(grid) @ _RAS_TO_LPS @ affine
    change = nib.io_orientation(to_grid)
    frames = apply_orientation(labelmap, change)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in frames.shape], [1], indexing="ij")).reshape(4, -1)
    error = np.abs(to_grid @ inv_ornt_aff(change, labelmap.shape) @ corners - corners).max()
    if frames.shape != shape or error > _SAME_GRID:
        raise InputError(
            f"{series_dir}: the labelmap has another grid than the DICOM series: {' × '.join(map(str, frames.shape))} "
            f"against {' × '.join(map(str, shape))} voxels (slices, rows, columns), corners up to {error:.3g} voxels "
            f"apart. Expected the grid of the series. Write the labelmap in native space."
        )
    return frames


def _series_affine(slices: Sequence[pydicom.Dataset]) -> npt.NDArray[np.float64]:
    """Map from (slice, row, column) to LPS millimetres; equation C.7.6.2.1-1 of DICOM PS3.3, with a slice axis."""
    first, last = (np.array(item.ImagePositionPatient, dtype=float) for item in (slices[0], slices[-1]))
    along_row, along_column = np.array(slices[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    row_distance, column_distance = map(float, slices[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0] = (last - first) / (len(slices) - 1)
    affine[:3, 1] = along_column * row_distance
    affine[:3, 2] = along_row * column_distance
    affine[:3, 3] = first
    return affine


def _segmentation(
    frames: npt.NDArray[np.unsignedinteger[Any]], slices: Sequence[pydicom.Dataset], segments: Sequence[SegmentSpec]
) -> pydicom.Dataset:
    import highdicom as hd  # loading it takes a second that runs without DICOM need not spend
    from matplotlib import color_sequences

    logging.getLogger("highdicom").setLevel(logging.WARNING)  # below, its messages hold identifiers of the images
    colours = color_sequences["tab10"]
    algorithm = hd.AlgorithmIdentificationSequence(
        name="Atlas-ISTN", version=__version__, family=_ARTIFICIAL_INTELLIGENCE, source="atlas_istn"
    )
    descriptions = []
    for number, segment in enumerate(segments, start=1):
        description = hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=segment.label,
            segmented_property_category=segment.category,
            segmented_property_type=segment.type,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=hd.color.CIELabColor.from_rgb(*(round(255 * c) for c in colours[(number - 1) % 10])),
        )
        if segment.modifier:
            kind = description.SegmentedPropertyTypeCodeSequence[0]
            kind.SegmentedPropertyTypeModifierCodeSequence = [hd.sr.CodedConcept.from_code(segment.modifier)]
        descriptions.append(description)
    return hd.seg.Segmentation(
        source_images=slices,
        pixel_array=frames,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=hd.UID(),
        series_number=_SERIES_OFFSET + int(slices[0].get("SeriesNumber") or 0),
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="Atlas-ISTN bundle developers",
        manufacturer_model_name="atlas_istn",
        software_versions=__version__,
        device_serial_number="none",
        content_creator_name="",
        series_description="Atlas-ISTN segmentation, research use only",
        content_description="atlas registered to the image, with refinement",
    )
