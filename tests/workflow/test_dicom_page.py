# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The page of a case as a DICOM Secondary Capture: what it shows, where, and what its header says."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from matplotlib.colors import to_rgb
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

from atlas_istn.errors import InputError
from atlas_istn.io.loading import read_volume
from atlas_istn.io.outputs import write_json, write_labelmap
from atlas_istn.io.results import RESULTS
from atlas_istn.pictures.dicom_page import draw_page, page_text
from atlas_istn.pictures.palette import label_colour
from atlas_istn.workflow.dicom_page import write_dicom_capture

SHAPE = (12, 12, 12)
REPORT: dict[str, Any] = {
    "case": "results",
    "loss_curve": [0.5, 0.25],
    "loss_before": 0.5,
    "loss_after": 0.25,
    "iterations": 40,
    "seconds": 1.5,
    "min_jacobian": 0.5,
    "folded_fraction": 0.0,
    "topology": {"anterior": {"components": 1}, "posterior": {"components": 2}},
    "labels": {"anterior": 1, "posterior": 2},
    "warnings": [],
}


def two_labels() -> np.ndarray:
    labels = np.zeros(SHAPE)
    labels[3:9, 2:6, 3:9] = 1
    labels[3:9, 6:10, 3:9] = 2
    return labels


def page_of(image: np.ndarray, labels: np.ndarray, report: dict[str, Any] = REPORT) -> np.ndarray:
    return draw_page(image, (1.0, 1.0, 1.0), {kind.title: labels for kind in RESULTS.values()}, report)


def pixels_of(page: np.ndarray, colour: str) -> int:
    return int((np.abs(page - np.round(255 * np.array(to_rgb(colour)))).max(axis=-1) < 20).sum())


@pytest.fixture
def case(tmp_path: Path, write_series: Callable[..., np.ndarray]) -> Callable[..., tuple[Path, Path]]:
    """A function that writes a series of a patient and the results of inference on it."""

    def write(name: str, turned: bool = False) -> tuple[Path, Path]:
        """The same volume with its rows and slices stored in the other direction if ``turned``."""
        voxels = np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.uint16)
        common = {"StudyInstanceUID": generate_uid(), "PatientID": "Secret-ID", "PixelSpacing": [1, 1]}

        def edit(index: int, tags: dict[str, Any]) -> None:
            along = [-1, 0, 0, 0, 1, 0] if turned else [1, 0, 0, 0, 1, 0]
            position = [11, 0, 11 - index] if turned else [0, 0, index]
            tags.update(common, ImageOrientationPatient=along, ImagePositionPatient=position)

        series, results = tmp_path / name / "series", tmp_path / name / "results"
        write_series(series, edit, voxels[::-1, :, ::-1] if turned else voxels)
        volume = read_volume(series, 3)
        labels = np.zeros(SHAPE, dtype=int)
        labels[volume[0].numpy() > 500] = 1
        for ending in (kind.ending for kind in RESULTS.values()):
            write_labelmap(labels, np.asarray(volume.affine), [0, 1, 2], results / f"results_{ending}.nii.gz")
        write_json(REPORT, results / "results.json")
        return series, results

    return write


def test_every_label_is_outlined_in_its_colour() -> None:
    image, labels = np.zeros(SHAPE), two_labels()
    plain, outlined = page_of(image, 0 * labels), page_of(image, labels)
    only_first = page_of(image, np.where(labels == 2, 0, labels))
    first, second = label_colour(0), label_colour(1)
    # The text has the same colours: count what the contours add.
    assert pixels_of(outlined, first) - pixels_of(plain, first) > 1000
    assert pixels_of(outlined, second) - pixels_of(plain, second) > 1000
    assert abs(pixels_of(only_first, second) - pixels_of(plain, second)) < 100


def panels_of(page: np.ndarray) -> list[np.ndarray]:
    """The pixels of the axial, coronal and sagittal image: runs of rows that are not black, much longer than titles."""
    column = page[:, : page.shape[1] * 3 // 16]
    rows = np.flatnonzero((column > 100).all(axis=-1).sum(axis=1) > 50)
    runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    return [column[run[0] : run[-1]] for run in runs if len(run) > 100]


@pytest.mark.parametrize(("axis", "shown"), [(0, {0: 1}), (1, {0: 0, 2: 1}), (2, {1: 0, 2: 0})])
def test_planes_lie_as_radiologists_see_them(axis: int, shown: dict[int, int]) -> None:
    """Right is on the left, anterior on top of axial and on the left of sagittal planes, superior on top.

    ``shown`` maps a panel to the axis of its picture, 0 down or 1 across, along which the bright half comes first.
    """
    image = np.full(SHAPE, 2.0)
    bright = slice(6, None)  # right, anterior or superior
    image.swapaxes(0, axis)[bright] = 3
    image[:1, :, :1] = image[:, -1:, -1:] = 0  # black corners, so that the other half is grey
    panels = panels_of(page_of(image, np.zeros(SHAPE)))
    assert len(panels) == 3
    for panel, across in shown.items():
        where = {level: np.argwhere((panels[panel] == level).all(axis=-1)) for level in (255, 170)}
        assert all(len(found) > 1000 for found in where.values())
        assert where[255][:, across].mean() < where[170][:, across].mean() - 20


def test_the_page_does_not_depend_on_how_the_slices_are_stored(case: Callable[..., tuple[Path, Path]]) -> None:
    pages = []
    for name, turned in (("straight", False), ("turned", True)):
        series, results = case(name, turned)
        write_dicom_capture(results, series, results / "page.dcm")
        pages.append(pydicom.dcmread(results / "page.dcm").pixel_array)
    np.testing.assert_array_equal(*pages)


def test_the_text_tells_volumes_and_warnings() -> None:
    report = {**REPORT, "warnings": ["posterior has 2 components"], "quality": "review", "quality_reasons": ["odd"]}
    lines = [line for line, _ in page_text(two_labels(), (1.0, 2.0, 0.5), report)]
    # 6 × 4 × 6 voxels of 1 mm³ are 0.144 ml.
    assert "anterior: 0.14 ml, components: 1" in lines
    assert "posterior: 0.14 ml, components: 2" in lines
    assert {"quality: review", "warnings: 1", "! posterior has 2 components", "! odd", "iterations: 40"} <= set(lines)
    estimate = {"dice": 0.876, "low": 0.8, "high": 0.91}
    lines = page_text(two_labels(), (1.0, 1.0, 1.0), {**REPORT, "predicted_dice": {"posterior": estimate}})
    assert ("  predicted Dice 0.88 (0.80 to 0.91)", label_colour(1)) in lines
    lines = page_text(two_labels(), (1.0, 1.0, 1.0), {**REPORT, "predicted_dice": "not calibrated (n = 8)"})
    assert "predicted Dice: not calibrated (n = 8)" in [line for line, _ in lines]
    assert "warnings: none" in [line for line, _ in page_text(two_labels(), (1.0, 1.0, 1.0), REPORT)]


def test_the_page_belongs_to_the_study(tmp_path: Path, case: Callable[..., tuple[Path, Path]]) -> None:
    series, results = case("case")
    write_dicom_capture(results, series, tmp_path / "page.dcm")
    page = pydicom.dcmread(tmp_path / "page.dcm")
    sources = [pydicom.dcmread(path) for path in series.iterdir()]
    assert page.SOPClassUID == SecondaryCaptureImageStorage
    assert page.StudyInstanceUID == sources[0].StudyInstanceUID
    assert (page.PatientName, page.PatientID) == (sources[0].PatientName, "Secret-ID")
    assert page.SeriesInstanceUID != sources[0].SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in page.SourceImageSequence} == {s.SOPInstanceUID for s in sources}
    assert page.BurnedInAnnotation == "NO"
    assert page.ImageComments == "Research use only. Not a medical device."


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian package dicom3tools)")
def test_the_validator_finds_nothing(tmp_path: Path, case: Callable[..., tuple[Path, Path]]) -> None:
    series, results = case("case")
    write_dicom_capture(results, series, tmp_path / "page.dcm")
    command = ["dciodvfy", str(tmp_path / "page.dcm")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (run.stdout + run.stderr).splitlines()
    assert "SCImage" in lines  # it has recognised the kind of object
    assert [line for line in lines if line.startswith("Error")] == []


def test_missing_results_are_named(tmp_path: Path, case: Callable[..., tuple[Path, Path]]) -> None:
    series, results = case("case")
    (results / "results_seg.nii.gz").unlink()
    with pytest.raises(InputError, match=r"results_seg\.\*: no such file"):
        write_dicom_capture(results, series, tmp_path / "page.dcm")
    (results / "results.json").write_text("{")
    with pytest.raises(InputError, match=r"results\.json: expected the JSON that inference writes"):
        write_dicom_capture(results, series, tmp_path / "page.dcm")
    assert not (tmp_path / "page.dcm").exists()


def test_the_page_survives_ordinary_headers(tmp_path: Path, case: Callable[..., tuple[Path, Path]]) -> None:
    series, results = case("odd")
    for path in series.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.SpecificCharacterSet, dataset.PatientName = ["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"
        dataset.SeriesNumber, dataset.PatientSex, dataset.StudyID = 2**31 - 1, "U", "much too long for this"
        dataset.save_as(path)
    write_dicom_capture(results, series, tmp_path / "page.dcm")
    page = pydicom.dcmread(tmp_path / "page.dcm")
    assert page.PatientName == "Yamada^Tarou=山田^太郎"
    assert (page.SeriesNumber, page.PatientSex, page.StudyID) == (2000, "", "")
