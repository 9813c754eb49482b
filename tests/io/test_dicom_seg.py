# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""DICOM segmentations as other tools read them: highdicom, dcmqi and the validator dciodvfy."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from matplotlib.colors import to_rgb
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from pydicom.uid import generate_uid
from skimage.color import rgb2lab

from atlas_istn import __version__
from atlas_istn.errors import InputError
from atlas_istn.io.dicom_seg import SegmentSpec, segment_specs, write_dicom_seg
from atlas_istn.io.loading import read_volume
from atlas_istn.pictures.palette import label_colour
from support import DATA, violations

pytest.importorskip("highdicom")

NAMES = {0: "background", 1: "anterior", 2: "posterior"}
CODES = {
    "anterior": {"type": ["5366008", "SCT", "Hippocampus"], "modifier": ["255549009", "SCT", "Anterior"]},
}
SPECS = segment_specs(NAMES, CODES)
TURN = [0.8, 0.6, 0.0, -0.36, 0.48, 0.8]
"""Direction cosines of rows and columns, oblique to all axes."""


@pytest.fixture
def series(tmp_path: Path, write_series: Callable[..., np.ndarray]) -> Path:
    """An oblique MR series with all that a DICOM SEG refers to, file names in reverse order."""
    normal = np.cross(TURN[:3], TURN[3:])
    common = {"StudyInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid(), "SeriesNumber": 7}

    def edit(index: int, tags: dict[str, Any]) -> None:
        position = [round(float(value), 6) for value in np.array([10, 20, 30]) + 2 * index * normal]
        tags.update(common, ImageOrientationPatient=TURN, ImagePositionPatient=position, PatientID="Secret-ID")

    write_series(tmp_path / "series", edit)
    return tmp_path / "series"


def grid_of(series: Path) -> tuple[np.ndarray, tuple[int, ...]]:
    """RAS affine and shape of the volume as inference reads it."""
    volume = read_volume(series, 3)
    return np.asarray(volume.affine), tuple(volume.shape[1:])


def labels_on(shape: tuple[int, ...]) -> np.ndarray:
    """Classes 0 to 2 without any symmetry."""
    return np.random.default_rng(0).integers(0, 3, shape)


@pytest.mark.parametrize("reader", ["highdicom", "dcmqi"])
@pytest.mark.parametrize("stored", [None, "RAS", "PSL"])
def test_other_tools_read_the_same_voxels(
    tmp_path: Path, series: Path, read_segmentation: Callable[..., np.ndarray], reader: str, stored: str | None
) -> None:
    affine, shape = grid_of(series)
    labels = labels_on(shape)
    labels[:, :, 0] = 0  # a frame without voxels, which is left out
    given, given_affine = labels, affine
    if stored:
        change = ornt_transform(nib.io_orientation(affine), axcodes2ornt(stored))
        given, given_affine = apply_orientation(labels, change), affine @ inv_ornt_aff(change, shape)
    write_dicom_seg(given, given_affine, series, tmp_path / "seg.dcm", SPECS)
    np.testing.assert_array_equal(read_segmentation(tmp_path / "seg.dcm", affine, shape, reader), labels)


def test_the_validator_finds_nothing(tmp_path: Path, series: Path) -> None:
    affine, shape = grid_of(series)
    for name, labels in (("full", labels_on(shape)), ("empty", np.zeros(shape, dtype=int))):
        write_dicom_seg(labels, affine, series, tmp_path / f"{name}.dcm", SPECS)
        assert violations(tmp_path / f"{name}.dcm") == []


def test_every_frame_refers_to_the_image_at_its_position(tmp_path: Path, series: Path) -> None:
    affine, shape = grid_of(series)
    write_dicom_seg(labels_on(shape), affine, series, tmp_path / "seg.dcm", SPECS)
    images = {item.SOPInstanceUID: item for item in map(pydicom.dcmread, series.iterdir())}
    segmentation = pydicom.dcmread(tmp_path / "seg.dcm")
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        assert position == images[source].ImagePositionPatient
    referenced = segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {item.ReferencedSOPInstanceUID for item in referenced} == set(images)
    one = next(iter(images.values()))
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName"):
        assert segmentation[keyword].value == one[keyword].value
    assert segmentation.SeriesInstanceUID != one.SeriesInstanceUID
    assert segmentation.SeriesNumber == 1007


def test_segments_say_what_they_are_and_what_made_them(tmp_path: Path, series: Path) -> None:
    affine, shape = grid_of(series)
    write_dicom_seg(labels_on(shape), affine, series, tmp_path / "seg.dcm", SPECS)
    first, second = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    assert [first.SegmentLabel, second.SegmentLabel] == ["anterior", "posterior"]
    kind = first.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("5366008", "SCT", "Hippocampus")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Anterior"
    for segment in (first, second):  # the second has no entry in the table
        assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("Atlas-ISTN", __version__)
        assert algorithm.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Anatomical Structure"
    assert "SegmentedPropertyTypeModifierCodeSequence" not in second.SegmentedPropertyTypeCodeSequence[0]


def test_viewers_show_the_colours_that_pictures_have(tmp_path: Path, series: Path) -> None:
    affine, shape = grid_of(series)
    specs = segment_specs(NAMES, CODES, label_colour)
    write_dicom_seg(labels_on(shape), affine, series, tmp_path / "seg.dcm", specs)
    segments = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    for number, segment in enumerate(segments):
        lab = np.array(segment.RecommendedDisplayCIELabValue) / 65535 * [100, 255, 255] - [
            0,
            128,
            128,
        ]  # PS3.3 C.10.7.1.1
        expected = rgb2lab(np.array(to_rgb(label_colour(number)))[None])[0]
        np.testing.assert_allclose(lab, expected, atol=6)  # highdicom has another white point


def test_specifications_follow_the_classes() -> None:
    specs = segment_specs({2: "posterior", 0: "background", 1: "anterior"}, CODES)
    assert [spec.label for spec in specs] == ["anterior", "posterior"]
    assert specs[1] == SegmentSpec("posterior")


@pytest.mark.parametrize("entry", [{"type": ["5366008", "SCT"]}, {"type": "5366008"}, {"kind": ["1", "SCT", "x"]}])
def test_codes_that_are_none(entry: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="segment_codes, label anterior"):
        segment_specs(NAMES, {"anterior": entry})


def test_nobody_is_named_in_messages(tmp_path: Path, series: Path, caplog: pytest.LogCaptureFixture) -> None:
    affine, shape = grid_of(series)
    with caplog.at_level(logging.INFO):
        write_dicom_seg(labels_on(shape), affine, series, tmp_path / "seg.dcm", SPECS)
    first = pydicom.dcmread(next(series.iterdir()))
    assert not [word for word in ("Secret", first.SOPInstanceUID, first.StudyInstanceUID) if word in caplog.text]


@pytest.mark.parametrize("change", ["shifted", "cropped", "turned"])
def test_a_labelmap_on_another_grid_is_refused(tmp_path: Path, series: Path, change: str) -> None:
    affine, shape = grid_of(series)
    labels = labels_on(shape)
    if change == "shifted":
        affine = affine @ nib.affines.from_matvec(np.eye(3), [0.5, 0, 0])
    elif change == "turned":
        affine = nib.affines.from_matvec(np.array([[0.98, -0.2, 0], [0.2, 0.98, 0], [0, 0, 1]])) @ affine
    else:
        labels = labels[:-1]
    with pytest.raises(InputError, match="has another grid than the DICOM series"):
        write_dicom_seg(labels, affine, series, tmp_path / "seg.dcm", SPECS)
    assert not (tmp_path / "seg.dcm").exists()


def test_more_classes_than_descriptions_are_refused(tmp_path: Path, series: Path) -> None:
    affine, shape = grid_of(series)
    with pytest.raises(InputError, match="holds the class 2, but 1 classes are described"):
        write_dicom_seg(labels_on(shape), affine, series, tmp_path / "seg.dcm", SPECS[:1])


def test_a_series_that_cannot_be_referred_to_is_refused(
    tmp_path: Path, write_series: Callable[..., np.ndarray]
) -> None:
    write_series(tmp_path / "bare", lambda index, tags: tags.update(StudyInstanceUID="1.2.3"))
    affine, shape = grid_of(tmp_path / "bare")
    with pytest.raises(InputError, match="has no FrameOfReferenceUID"):
        write_dicom_seg(labels_on(shape), affine, tmp_path / "bare", tmp_path / "seg.dcm", SPECS)


@pytest.mark.skipif(not (DATA / "hippocampus_dicom").is_dir(), reason=f"no real data in {DATA}: set ATLAS_ISTN_DATA")
@pytest.mark.parametrize("reader", ["highdicom", "dcmqi"])
def test_a_real_series(tmp_path: Path, read_segmentation: Callable[..., np.ndarray], reader: str) -> None:
    folder = DATA / "hippocampus_dicom" / "Study1"
    affine, shape = grid_of(folder)
    labels = labels_on(shape)
    write_dicom_seg(labels, affine, folder, tmp_path / "seg.dcm", SPECS)
    np.testing.assert_array_equal(read_segmentation(tmp_path / "seg.dcm", affine, shape, reader), labels)
    if reader == "highdicom":
        assert violations(tmp_path / "seg.dcm") == []
