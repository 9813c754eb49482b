# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Pictures as DICOM Secondary Capture images of the study that they were made from.

The object has the patient's identifiers in its header, as every image of a study must.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.uid import ExplicitVRLittleEndian

from .. import __version__
from .dicom import read_series
from .dicom_files import unquoted
from .dicom_headers import series_number, source_headers
from .files import write_whole

__all__ = ["write_secondary_capture"]

_SERIES_OFFSET = 2000  # added to the number of the source series, so that it is listed after the segmentation


def write_secondary_capture(
    picture: npt.NDArray[np.uint8],
    series_dir: str | os.PathLike[str],
    path: str | os.PathLike[str],
    description: str,
    comment: str,
) -> None:
    """Write a picture as a DICOM Secondary Capture image into the study of its source series.

    Args:
        picture: RGB ``[H, W, 3]``, without identifiers in its pixels.
        series_dir: folder of the one source series.
        path: ``.dcm``.
        description: of the series.
        comment: of the image.

    Raises:
        InputError: the series cannot be read (see `read_series`), or the file cannot be written.
    """
    headers = source_headers(read_series(series_dir))
    with unquoted(series_dir):
        capture = _capture(picture, headers, description)
        capture.ImageComments = comment
        write_whole(path, lambda part: capture.save_as(part, enforce_file_format=True))


def _capture(picture: npt.NDArray[np.uint8], sources: Sequence[pydicom.Dataset], description: str) -> Any:
    import highdicom  # loading it takes a second

    capture = highdicom.sc.SCImage.from_ref_dataset(
        sources[0],
        pixel_array=picture,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        series_instance_uid=highdicom.UID(),
        sop_instance_uid=highdicom.UID(),
        series_number=series_number(sources[0], _SERIES_OFFSET),
        instance_number=1,
        manufacturer="Atlas-ISTN bundle developers",
        manufacturer_model_name="Atlas-ISTN",
        software_versions=__version__,
        series_description=description,
        transfer_syntax_uid=ExplicitVRLittleEndian,  # every viewer shows it
    )
    capture.PatientOrientation = []  # highdicom wants one, and a picture of several planes has none
    capture.Laterality = ""  # which side a paired organ is of, nobody asked
    capture.BurnedInAnnotation = "NO"
    capture.SourceImageSequence = [_reference(source) for source in sources]
    return capture


def _reference(source: pydicom.Dataset) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    return item
