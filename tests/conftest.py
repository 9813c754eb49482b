# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Input that several test modules need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

Tags = dict[str, Any]


@pytest.fixture
def write_series() -> Callable[..., np.ndarray]:
    """A function that writes an MR series of 6 slices, 5 rows × 4 columns, 2 mm apart, and returns them [z, y, x].

    ``edit(index, tags)`` may change the tags of a slice, or return False to leave it out. File names are in
    reverse order.
    """

    def write(folder: Path, edit: Callable[[int, Tags], bool | None] = lambda index, tags: None) -> np.ndarray:
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 1000, (6, 5, 4)).astype(np.uint16)
        series = generate_uid()
        for index, plane in enumerate(pixels):
            tags: Tags = {
                "PatientName": "Secret^Name",
                "SeriesInstanceUID": series,
                "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
                "ImagePositionPatient": [10, 20, 30 + 2 * index],
                "PixelSpacing": [1.5, 0.5],
                "InstanceNumber": index + 1,
                "SamplesPerPixel": 1,
            }
            if edit(index, tags) is not False:
                _write_slice(folder / f"{9 - index}.dcm", plane, tags)
        return pixels

    return write


def _write_slice(path: Path, plane: np.ndarray, tags: Tags) -> None:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Modality, dataset.PhotometricInterpretation = "MR", "MONOCHROME2"
    dataset.Rows, dataset.Columns = plane.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = plane.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
