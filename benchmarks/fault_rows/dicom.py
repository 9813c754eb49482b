# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""DICOM series: what scanners, archives and discs make of them. Every tag of the patient holds a canary."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from .row import SECRET, Row, Work
from .runs import infer, scan

__all__ = ["rows"]

Change = Callable[[pydicom.Dataset, int], object]
SERIES, STUDY, WORLD = generate_uid(), generate_uid(), generate_uid()
PATIENT = (
    *("PatientName", "PatientID", "PatientComments", "OtherPatientNames", "StudyID", "StudyDescription"),
    *("AccessionNumber", "OperatorsName", "ReferringPhysicianName", "SeriesDescription", "InstitutionName"),
    *("StationName", "ProtocolName", "RequestedProcedureID", "PatientAddress"),
)
SEG = "out/bad/bad_seg.dcm"
NIFTI = "out/bad/bad_seg.nii.gz"


def _slice(index: int, plane: np.ndarray) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    for keyword in PATIENT:
        setattr(dataset, keyword, SECRET)  # no ^ in the name: a library warns of that with the name
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "MR", 3, index + 1
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = STUDY, SERIES, WORLD
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [-10, -14, index - 10]
    dataset.PixelSpacing, dataset.SliceThickness = [1, 1], 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = plane.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = plane.tobytes()
    return dataset


def _write(folder: Path, change: Change = lambda dataset, index: None) -> list[Path]:
    """A series; a change that returns False leaves a slice out."""
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, plane in enumerate((scan().transpose(2, 1, 0) + 100).clip(0).astype(np.uint16)):
        dataset = _slice(index, np.ascontiguousarray(plane))
        if change(dataset, index) is not False:
            path = folder / f"IM{index:03}.dcm"
            dataset.save_as(path, enforce_file_format=True)
            paths.append(path)
    return paths


def _tags(**tags: Any) -> Change:
    return lambda dataset, index: (
        [dataset.__setitem__(key, _element(key, value)) for key, value in tags.items()] and None
    )


def _element(keyword: str, value: Any) -> pydicom.DataElement:
    kind = pydicom.datadict.dictionary_VR(keyword)
    with pydicom.config.disable_value_validation():
        return pydicom.DataElement(keyword, kind, value, validation_mode=pydicom.config.IGNORE)


def _one(index: int, **tags: Any) -> Change:
    return lambda dataset, number: _tags(**tags)(dataset, number) if number == index else None


def _prepare(make: Callable[[Path], object], settings: Mapping[str, Any], folder: Path) -> Work:
    _write(folder / "scans" / "good")
    make(folder / "scans")
    return lambda: infer(folder, **settings)


def _changed(change: Change) -> Callable[[Path], object]:
    return lambda scans: _write(scans / "bad", change)


def _bytes(change: Callable[[int, bytes], bytes]) -> Callable[[Path], object]:
    def make(scans: Path) -> None:
        for number, path in enumerate(_write(scans / "bad")):
            path.write_bytes(change(number, path.read_bytes()))

    return make


def _moved(distances: Sequence[float]) -> Change:
    return lambda dataset, index: setattr(dataset, "ImagePositionPatient", [-10, -14, distances[index]])


def _beside(name: str, content: bytes) -> Callable[[Path], object]:
    def make(scans: Path) -> None:
        _write(scans / "bad")
        (scans / "bad" / name).write_bytes(content)

    return make


def _compressed(dataset: pydicom.Dataset, index: int) -> None:
    dataset.file_meta.TransferSyntaxUID = JPEG2000
    dataset.PixelData = encapsulate([b"no picture of this kind "])
    dataset["PixelData"].is_undefined_length = True


def _mac(scans: Path) -> None:
    for path in _write(scans / "bad"):
        path.with_name(f"._{path.name}").write_bytes(b"\0" * 100)


def _without_pixels(kind: str, name: str, scans: Path) -> None:
    _write(scans / "bad")
    dataset = _slice(0, np.zeros((4, 4), np.uint16))
    for keyword in ("PixelData", "Rows", "Columns", "ImagePositionPatient"):
        del dataset[keyword]
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = kind
    (scans / name).parent.mkdir(exist_ok=True)
    dataset.save_as(scans / name, enforce_file_format=True)


def _screenshot(scans: Path) -> None:
    _write(scans / "bad")
    dataset = _slice(0, np.zeros((4, 4), np.uint16))
    del dataset["ImagePositionPatient"]
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.save_as(scans / "bad" / "shot.dcm", enforce_file_format=True)


def _two_series(scans: Path) -> None:
    _write(scans / "bad")
    for path in _write(scans / "other", _tags(SeriesInstanceUID=generate_uid())):
        shutil.move(path, scans / "bad" / f"other{path.name}")
    (scans / "other").rmdir()


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "slice missing": (_changed(lambda dataset, index: index != 7), "missing"),
    "slice twice": (_changed(_moved([*range(19), 18])), "bad: "),
    "the same image twice": (
        lambda scans: shutil.copy(_write(scans / "bad")[3], scans / "bad" / "copy.dcm"),
        "bad: ",
    ),
    "one SOPInstanceUID for two": (_changed(_tags(SOPInstanceUID="1.2.3")), "bad: "),
    "two patients": (_changed(_one(3, PatientID="Canary2")), "patient"),
    "two studies": (_changed(_one(3, StudyInstanceUID="1.2.3.4")), "bad: "),
    "two series": (_two_series, "series"),
    "tilted gantry": (
        _changed(lambda dataset, index: setattr(dataset, "ImagePositionPatient", [-10, -14 + 0.4 * index, index])),
        "tilt",
    ),
    "one slice turned": (_changed(_one(3, ImageOrientationPatient=[0, 1, 0, 1, 0, 0])), "bad: "),
    "one slice of another size": (_changed(_one(3, Rows=14, PixelData=b"\0" * 560)), "bad: "),
    "one slice of another pixel spacing": (_changed(_one(3, PixelSpacing=[2, 2])), "bad: "),
    "no position": (_changed(lambda dataset, index: dataset.__delitem__("ImagePositionPatient")), "position"),
    "no orientation": (_changed(lambda dataset, index: dataset.__delitem__("ImageOrientationPatient")), "orientation"),
    "no pixel spacing": (_changed(lambda dataset, index: dataset.__delitem__("PixelSpacing")), "spacing"),
    "pixel spacing 0": (_changed(_tags(PixelSpacing=[0, 0])), "bad: "),
    "negative pixel spacing": (_changed(_tags(PixelSpacing=[-1, 1])), "bad: "),
    "a single slice": (_changed(lambda dataset, index: index == 0), "bad: "),
    "colours": (
        _changed(_tags(SamplesPerPixel=3, PhotometricInterpretation="RGB", BitsAllocated=8, BitsStored=8, HighBit=7)),
        "colour",
    ),
    "pixels cut off": (_bytes(lambda number, content: content[:-50] if number == 5 else content), "bad: "),
    "header cut off": (_bytes(lambda number, content: content[:300] if number == 5 else content), "bad: "),
    "all files are text": (_bytes(lambda number, content: b"Canary"), "bad: "),
    "compressed, but no such pixels": (_changed(_compressed), "bad: "),
    "no pixels": (_changed(lambda dataset, index: dataset.__delitem__("PixelData")), "bad: "),
}
READ: dict[str, Callable[[Path], object]] = {
    "._ files of a Mac": _mac,
    "no preamble": _bytes(lambda number, content: content[132:]),
    "a directory of a CD": partial(_without_pixels, "1.2.840.10008.1.3.10", "DICOMDIR"),
    "a report on a CD": partial(_without_pixels, "1.2.840.10008.5.1.4.1.1.88.11", "REPORT/SR1"),
    "a screenshot in the series": _screenshot,
    "notes in the series": _beside("notes.txt", b"Canary"),
    "no suffix": lambda scans: [path.rename(path.with_suffix("")) for path in _write(scans / "bad")],
    "positions of one decimal": _changed(_moved([round(0.97 * index, 1) for index in range(20)])),
    "declared padding": _changed(_tags(PixelPaddingValue=0)),
    "rescale slope and intercept": _changed(_tags(RescaleSlope=2, RescaleIntercept=-1024)),
    "reverse order": lambda scans: [
        path.rename(path.with_name(f"X{900 - number}")) for number, path in enumerate(_write(scans / "bad"))
    ],
}
HEADERS: dict[str, dict[str, Any]] = {
    "Japanese": {"SpecificCharacterSet": ["", "ISO 2022 IR 87"]},
    "Korean": {"SpecificCharacterSet": ["", "ISO 2022 IR 149"]},
    "no character set": {"SpecificCharacterSet": ""},
    "ISO_IR 6": {"SpecificCharacterSet": "ISO_IR 6"},
    "unknown character set": {"SpecificCharacterSet": "LATIN"},
    "birth date of zeros": {"PatientBirthDate": "00000000"},
    "year of birth": {"PatientBirthDate": "1970"},
    "date with dashes": {"StudyDate": "2020-01-19"},
    "time of no clock": {"StudyTime": "99:99"},
    "sex U": {"PatientSex": "U"},
    "sex male": {"PatientSex": "male"},
    "a value too long": {"PatientID": "Canary" * 14, "AccessionNumber": "Canary" * 4},
    "two values for one": {"AccessionNumber": ["Canary", "B"]},
    "greatest series number": {"SeriesNumber": 2**31 - 1},
    "a negative series number": {"SeriesNumber": -3},
}
NO_SEG = {
    "no study": {"StudyInstanceUID": ""},
    "no frame of reference": {"FrameOfReferenceUID": ""},
}


def _orientations(dataset: pydicom.Dataset, index: int) -> None:
    dataset.ImageOrientationPatient = [1, 2e-5 * (index % 2), 0, 0, 1, 0]


def rows() -> Iterator[Row]:
    """All faults of this kind."""
    good = ("out/good/good_seg.nii.gz", "out/summary.csv")
    for name, (make, reason) in REFUSED.items():
        yield Row("DICOM", name, partial(_prepare, make, {}), 1, ("1 of 2 cases failed", reason), good)
    for name, make in READ.items():
        yield Row("DICOM", name, partial(_prepare, make, {}), 0, ("results of 2 cases",), (*good, NIFTI))
    seg = {"output_format": "dicom_seg"}
    for name, tags in HEADERS.items():
        yield Row("DICOM", name, partial(_prepare, _changed(_tags(**tags)), seg), 0, (), (*good, NIFTI, SEG))
    yield Row("DICOM", "orientations that round", partial(_prepare, _changed(_orientations), seg), 0, (), (NIFTI, SEG))
    for name, tags in NO_SEG.items():
        prepare = partial(_prepare, _changed(_tags(**tags)), seg)
        yield Row("DICOM", name, prepare, 1, ("1 of 2 cases failed", next(iter(tags))), (*good, NIFTI))
