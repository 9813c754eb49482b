# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Objects made from ordinary hospital headers: valid, nothing lost that is right, and no value shown anywhere."""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.datadict import dictionary_VR
from pydicom.uid import generate_uid

from atlas_istn.errors import InputError
from atlas_istn.io.cases import find_cases
from atlas_istn.io.dicom import read_series
from atlas_istn.io.dicom_headers import series_number, source_headers
from atlas_istn.io.dicom_seg import segment_specs, write_dicom_seg
from atlas_istn.io.loading import read_volume
from support import CASES, violations

SPECS = segment_specs({0: "background", 1: "a", 2: "b"}, {})
UIDS = {name: generate_uid() for name in ("StudyInstanceUID", "FrameOfReferenceUID")}
CANARY = "Canary"


@pytest.fixture(autouse=True)
def _write_anything() -> Iterator[None]:
    """Let pydicom write what the standard forbids."""
    mode = pydicom.config.settings.writing_validation_mode
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    yield
    pydicom.config.settings.writing_validation_mode = mode


@pytest.fixture
def series(tmp_path: Path, write_series: Callable[..., np.ndarray]) -> Callable[..., Path]:
    """A function that writes a series with tags as given, those of numbers as text too."""

    def write(tags: dict[str, Any]) -> Path:
        folder = tmp_path / "series"
        write_series(folder, lambda index, own: own.update(UIDS))
        for path in folder.iterdir():
            dataset = pydicom.dcmread(path)
            dataset.SpecificCharacterSet = tags.get("SpecificCharacterSet", "ISO_IR 100")
            for keyword, value in tags.items():
                kind = dictionary_VR(keyword)
                raw = kind in ("DS", "IS", "DA", "TM") and isinstance(value, str)
                dataset.add_new(keyword, "LO" if raw else kind, value)
            dataset.save_as(path)
            if raw_tags := [k for k in tags if dictionary_VR(k) in ("DS", "IS", "DA", "TM")]:
                _with_kinds(path, raw_tags)
        return folder

    return write


def _with_kinds(path: Path, keywords: list[str]) -> None:
    """Put the right kind of value into tags that were written as text, since pydicom does not write wrong numbers."""
    content = path.read_bytes()
    for keyword in keywords:
        tag = pydicom.tag.Tag(keyword)
        name = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little")
        assert content.count(name + b"LO") == 1
        content = content.replace(name + b"LO", name + dictionary_VR(keyword).encode())
    path.write_bytes(content)


def write_seg(folder: Path, path: Path) -> pydicom.Dataset:
    volume = read_volume(folder, 3)
    labels = np.random.default_rng(0).integers(0, 3, volume.shape[1:])
    write_dicom_seg(labels, np.asarray(volume.affine), folder, path, SPECS)
    return pydicom.dcmread(path)


HEADERS = [
    ({"PatientName": "Yamada^Tarou=山田^太郎", "SpecificCharacterSet": ["", "ISO 2022 IR 87"]}, {}),
    ({"PatientName": "Hong^Gildong=洪^吉洞", "SpecificCharacterSet": ["", "ISO 2022 IR 149"]}, {}),
    ({"PatientName": "Иванов^Иван", "SpecificCharacterSet": ["ISO 2022 IR 100", "ISO 2022 IR 144"]}, {}),
    ({"PatientName": "王^小东", "SpecificCharacterSet": "GB18030"}, {}),
    ({"PatientName": "Łukasz", "SpecificCharacterSet": "ISO_IR 192"}, {}),
    ({"PatientName": "Müller^Hans", "SpecificCharacterSet": ""}, {}),
    ({"PatientName": "Muller^Hans", "SpecificCharacterSet": "ISO_IR 6"}, {}),
    ({"PatientName": "Muller^Hans", "SpecificCharacterSet": "LATIN"}, {}),
    ({"PatientBirthDate": "00000000"}, {"PatientBirthDate": ""}),
    ({"PatientBirthDate": "1970"}, {"PatientBirthDate": ""}),
    ({"PatientBirthDate": "19700230"}, {"PatientBirthDate": ""}),
    ({"PatientBirthDate": "1970.02.20"}, {"PatientBirthDate": "19700220"}),
    ({"StudyDate": "2020-01-19", "StudyTime": "12:34:56"}, {"StudyDate": "20200119", "StudyTime": "123456"}),
    ({"StudyTime": "99:99"}, {"StudyTime": ""}),
    ({"PatientSex": "U"}, {"PatientSex": ""}),
    ({"PatientSex": "male"}, {"PatientSex": "M"}),
    ({"PatientSex": "F"}, {}),
    ({"PatientID": "I" * 80, "PatientName": "N" * 90}, {"PatientID": "", "PatientName": ""}),
    ({"AccessionNumber": "A" * 20, "StudyDescription": "D" * 70}, {"AccessionNumber": "", "StudyDescription": ""}),
    ({"AccessionNumber": ["A", "B"]}, {"AccessionNumber": ""}),
    ({"PatientAge": "45", "PatientWeight": "81,5"}, {"PatientAge": "", "PatientWeight": None}),
    ({"PatientSize": "1.8000000000000000001"}, {"PatientSize": 1.8}),
    ({"SeriesNumber": "2147483647"}, {"SeriesNumber": 1000}),
    ({"SeriesNumber": "99999999999"}, {"SeriesNumber": 1000}),
    ({"SeriesNumber": "one"}, {"SeriesNumber": 1000}),
    ({"SeriesNumber": "-3"}, {"SeriesNumber": 1000}),
    ({"Modality": "mr image"}, {"Modality": "SEG"}),
]


@pytest.mark.parametrize(
    ("tags", "expected"), HEADERS, ids=[", ".join(map(str, tags.values()))[:40] for tags, _ in HEADERS]
)
def test_what_is_copied_is_valid(
    tmp_path: Path,
    series: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    tags: dict[str, Any],
    expected: dict[str, Any],
) -> None:
    segmentation = write_seg(series(tags), tmp_path / "seg.dcm")
    assert segmentation.SpecificCharacterSet == "ISO_IR 192"
    kept = {keyword: value for keyword, value in tags.items() if keyword != "SpecificCharacterSet"}
    for keyword, value in (kept | expected).items():
        assert segmentation[keyword].value == value, keyword
    # The log names what changed, and not a value.
    for keyword in set(expected) - {"SeriesNumber"}:
        assert keyword in caplog.text
    assert not [value for value in kept.values() if len(str(value)) > 3 and str(value) in caplog.text]
    assert violations(tmp_path / "seg.dcm") == []


def test_characters_that_cannot_be_read_leave_the_tag_empty(tmp_path: Path, series: Callable[..., Path]) -> None:
    folder = series({"PatientName": "ABCDEF^GH", "SpecificCharacterSet": "ISO_IR 192"})
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"ABCDEF^GH", b"ABC\xff\xfeF^GH"))
    assert write_seg(folder, tmp_path / "seg.dcm").PatientName == ""


def test_numbers_of_added_series() -> None:
    header = pydicom.Dataset()
    assert series_number(header, 1000) == 1000
    for number, expected in ((7, 1007), (2**31 - 1001, 2**31 - 1), (2**31 - 1000, 1000), (-1, 1000)):
        header.SeriesNumber = number
        assert series_number(header, 1000) == expected


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"])
def test_what_references_need_has_to_be_there(series: Callable[..., Path], keyword: str) -> None:
    folder = series({keyword: ""})
    with pytest.raises(InputError, match=f"has no {keyword}"):
        source_headers(read_series(folder), "FrameOfReferenceUID")


@pytest.mark.parametrize("difference", [2e-5, 5e-4])
def test_orientations_that_differ_by_rounding(
    tmp_path: Path, write_series: Callable[..., np.ndarray], difference: float, read_segmentation: Callable[..., Any]
) -> None:
    noise = np.random.default_rng(0).uniform(-difference, difference, (6, 6)).round(7)

    def turn(index: int, tags: dict[str, Any]) -> None:
        tags.update(UIDS, ImageOrientationPatient=list(np.array([1, 0, 0, 0, 1, 0]) + noise[index]))

    write_series(tmp_path / "series", turn)
    assert write_seg(tmp_path / "series", tmp_path / "seg.dcm").NumberOfFrames == 12
    assert violations(tmp_path / "seg.dcm") == []


@pytest.mark.parametrize("order", [range(6), [3, 0, 5, 1, 4, 2]])
@pytest.mark.parametrize("reader", ["highdicom", "dcmqi"])
def test_segmentations_of_enhanced_images(
    tmp_path: Path,
    write_enhanced: Callable[..., np.ndarray],
    read_segmentation: Callable[..., Any],
    order: list[int],
    reader: str,
) -> None:
    def turn(frame: int, groups: pydicom.Dataset) -> None:  # every frame has an orientation of its own, nearly the same
        item = pydicom.Dataset()
        item.ImageOrientationPatient = [1, frame * 1e-6, 0, 0, 1, 0]
        groups.PlaneOrientationSequence = [item]

    write_enhanced(tmp_path / "series" / "1.dcm", order, turn)
    volume = read_volume(tmp_path / "series", 3)
    affine, shape = np.asarray(volume.affine), tuple(volume.shape[1:])
    labels = np.random.default_rng(0).integers(0, 3, shape)
    write_dicom_seg(labels, affine, tmp_path / "series", tmp_path / "seg.dcm", SPECS)
    np.testing.assert_array_equal(read_segmentation(tmp_path / "seg.dcm", affine, shape, reader), labels)
    if reader == "highdicom":
        assert violations(tmp_path / "seg.dcm") == []
        segmentation = pydicom.dcmread(tmp_path / "seg.dcm")
        for frame in segmentation.PerFrameFunctionalGroupsSequence:
            source = frame.DerivationImageSequence[0].SourceImageSequence[0]
            slice_ = (frame.PlanePositionSequence[0].ImagePositionPatient[2] - 30) / 2
            assert list(order)[source.ReferencedFrameNumber - 1] == slice_


TEXTS = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientWeight", "PatientComments"),
    *("OtherPatientNames", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber", "OperatorsName"),
    *("ReferringPhysicianName", "SeriesDescription", "SeriesNumber", "SeriesDate", "InstitutionName", "StationName"),
    *("Manufacturer", "BodyPartExamined", "ProtocolName", "PatientSize", "InstanceNumber", "RequestedProcedureID"),
)


def test_no_value_of_a_patient_is_shown(
    tmp_path: Path, series: Callable[..., Path], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every tag of patient, study and series holds a canary; those of dates and numbers too, which are wrong then."""
    folder = series({keyword: f"{CANARY}{number}" for number, keyword in enumerate(TEXTS)})
    first, second, third, *_ = sorted(folder.iterdir())
    (tmp_path / "file").touch()
    capfd.readouterr()
    caplog.clear()
    damages: list[Callable[[], object]] = [
        lambda: None,
        lambda: first.write_bytes(first.read_bytes()[:-20]),
        lambda: second.write_bytes(second.read_bytes()[:-200] + b"\xff" * 60),
        lambda: third.write_bytes(third.read_bytes()[:400]),
    ]
    labels = np.zeros((4, 5, 6), int)
    messages = []
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        affine = np.asarray(read_volume(folder, 3).affine)
        for damage in damages:
            damage()
            for action in (
                lambda: find_cases(str(tmp_path)),
                lambda: read_volume(folder, 3),
                lambda: write_dicom_seg(labels, affine, folder, tmp_path / "seg.dcm", SPECS),
                lambda: write_dicom_seg(labels, affine, folder, tmp_path / "file" / "seg.dcm", SPECS),
                lambda: write_dicom_seg(labels[1:], affine, folder, tmp_path / "seg.dcm", SPECS),
            ):
                try:
                    action()
                except InputError as error:
                    messages.append("".join(traceback.format_exception(error)))  # as servers log them
    assert len(messages) >= 2 + 3 * 3
    assert "PatientBirthDate" in caplog.text
    shown = [caplog.text, *messages, *(str(warning.message) for warning in caught), *capfd.readouterr()]
    assert CANARY not in "".join(shown)


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no folder {CASES}")
@pytest.mark.parametrize("folder", ["18_seg_orientation_rounding", "19_positions_one_decimal", "21_own_seg_inside"])
def test_series_that_once_gave_no_segmentation(tmp_path: Path, folder: str) -> None:
    assert write_seg(CASES / folder / "data", tmp_path / "seg.dcm").NumberOfFrames == 64
    assert violations(tmp_path / "seg.dcm") == []
