# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Labelmaps as DICOM Segmentation objects that refer to the images of their series.

What a label shows is told by coded concepts. The object takes patient and study from the series, as the standard
demands; file names and messages hold none of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
from nibabel.orientations import apply_orientation, inv_ornt_aff
from PIL import ImageColor

from .. import __version__
from ..errors import InputError
from ..spatial.world import LPS
from .dicom import Series, read_series
from .dicom_files import unquoted
from .dicom_headers import series_number, source_headers
from .files import write_whole
from .geometry import SAME_GRID, corner_distance

__all__ = ["SegmentSpec", "segment_specs", "write_dicom_seg"]

Concept = tuple[str, str, str]  # value, coding scheme, meaning

_STRUCTURE: Concept = ("91723000", "SCT", "Anatomical Structure")
_ARTIFICIAL_INTELLIGENCE: Concept = ("123110", "DCM", "Artificial Intelligence")
_SERIES_OFFSET = 1000  # added to the number of the source series, so that the segmentation is listed after the images


@dataclass(frozen=True)
class SegmentSpec:
    """How DICOM describes one label.

    Args:
        label: name that viewers show.
        category: what kind of thing it is, of context group 7150.
        type: what it is, such as the organ.
        modifier: which part or side of it.
        colour: in which viewers show it, such as ``#3fa7ff``; none for whatever they choose.
    """

    label: str
    category: Concept = _STRUCTURE
    type: Concept = _STRUCTURE
    modifier: Concept | None = None
    colour: str | None = None


def segment_specs(
    label_names: Mapping[int, str],
    segment_codes: Mapping[str, Mapping[str, Sequence[str]]],
    colour_of: Callable[[int], str] | None = None,
) -> list[SegmentSpec]:
    """Describe every label but the background.

    Args:
        label_names: class index → name, background (0) included.
        segment_codes: name → ``{"category": CODE, "type": CODE, "modifier": CODE}``, each optional, where CODE is
            ``[value, scheme, meaning]``, e.g. ``["5366008", "SCT", "Hippocampus"]``. A label without an entry becomes
            an "Anatomical Structure" that only its name tells from others.
        colour_of: number of a label, from 0 without the background, → its colour.

    Returns:
        One item for each class from 1, in their order.

    Raises:
        InputError: an entry has another key, or a code is not made of three parts.
    """
    names = dict(sorted((int(index), name) for index, name in label_names.items() if int(index) > 0))
    return [
        SegmentSpec(
            name,
            colour=colour_of(number) if colour_of else None,
            **{key: _code(name, key, parts) for key, parts in segment_codes.get(name, {}).items()},
        )
        for number, name in enumerate(names.values())
    ]


def _code(label: str, key: str, parts: Sequence[str]) -> Concept:
    if key not in ("category", "type", "modifier") or isinstance(parts, str) or len(parts) != 3:
        raise InputError(
            f"segment_codes, label {label}: '{key}: {parts}' describes no concept. Expected category, type or "
            f'modifier, with three parts such as ["5366008", "SCT", "Hippocampus"]. Correct the entry.'
        )
    value, scheme, meaning = (str(part) for part in parts)
    return value, scheme, meaning


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
        InputError: the series has no regular grid (see `read_series`) or lacks a tag that the references need, the
            labelmap lies on another grid or has more classes than descriptions, or the file cannot be written.
    """
    series = read_series(series_dir)
    frames = _on_frames(labelmap, affine, series)
    if frames.max() > len(segments):
        raise InputError(
            f"{series_dir}: the labelmap holds the class {frames.max()}, but {len(segments)} classes are described. "
            f"Expected a description of each (label_names). Use the data config of the model."
        )
    headers = source_headers(series, "FrameOfReferenceUID")
    # A multi-frame image has an order of its own.
    order = np.argsort([frame.number for frame in series.frames], kind="stable")
    stored: npt.NDArray[np.unsignedinteger[Any]] = frames[order].astype(np.uint8 if len(segments) < 256 else np.uint16)
    with unquoted(series_dir):
        write_whole(path, _segmentation(stored, headers, segments).save_as)


def _on_frames(
    labelmap: npt.NDArray[np.integer[Any]], affine: npt.NDArray[np.floating[Any]], series: Series
) -> npt.NDArray[np.integer[Any]]:
    """The labelmap as ``[slice, row, column]`` of the series; only axes are swapped and flipped."""
    to_grid = np.linalg.inv(series.affine) @ LPS @ affine
    change = nib.io_orientation(to_grid)
    frames = apply_orientation(labelmap, change)
    error = corner_distance(np.eye(4), to_grid @ inv_ornt_aff(change, labelmap.shape), frames.shape)
    if frames.shape != series.shape or error > SAME_GRID:
        found, expected = (" × ".join(map(str, shape)) for shape in (frames.shape, series.shape))
        raise InputError(
            f"{series.folder}: the labelmap has another grid than the DICOM series: {found} against {expected} voxels "
            f"(slices, rows, columns), corners up to {error:.3g} voxels apart. Expected the grid of the series. Write "
            f"the labelmap in native space."
        )
    return frames


def _segmentation(
    frames: npt.NDArray[np.unsignedinteger[Any]], headers: Sequence[pydicom.Dataset], segments: Sequence[SegmentSpec]
) -> pydicom.Dataset:
    import highdicom as hd  # loading it takes a second that runs without DICOM need not spend

    algorithm = hd.AlgorithmIdentificationSequence(
        name="Atlas-ISTN",
        version=__version__,
        family=hd.sr.CodedConcept(*_ARTIFICIAL_INTELLIGENCE),
        source="atlas_istn",
    )
    descriptions = []
    for number, segment in enumerate(segments, start=1):
        description = hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=segment.label,
            segmented_property_category=hd.sr.CodedConcept(*segment.category),
            segmented_property_type=hd.sr.CodedConcept(*segment.type),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=hd.color.CIELabColor.from_rgb(*ImageColor.getrgb(segment.colour)) if segment.colour else None,
        )
        if segment.modifier:
            kind = description.SegmentedPropertyTypeCodeSequence[0]
            kind.SegmentedPropertyTypeModifierCodeSequence = [hd.sr.CodedConcept(*segment.modifier)]
        descriptions.append(description)
    return hd.seg.Segmentation(
        source_images=headers,
        pixel_array=frames,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=hd.UID(),
        series_number=series_number(headers[0], _SERIES_OFFSET),
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
