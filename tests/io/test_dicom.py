# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""DICOM series as hospitals hand them out: what belongs to the volume, and where it lies; compared with SimpleITK."""

from __future__ import annotations

import locale
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import generate_uid

from atlas_istn.errors import InputError
from atlas_istn.io.cases import find_cases
from atlas_istn.io.dicom import read_series
from atlas_istn.io.loading import LoadCased, read_volume
from support import CASES

Write = Callable[..., np.ndarray]

AFFINE = np.diag([-0.5, -1.5, 2, 1])
AFFINE[:3, 3] = [-10, -20, 30]


def copy_of(path: Path, to: Path, **tags: Any) -> None:
    """A DICOM file with other tags; None takes one away."""
    dataset = pydicom.dcmread(path)
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(to)


REPORT: dict[str, Any] = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11"}
REPORT |= dict.fromkeys(("Rows", "Columns", "PixelData"))


class TestFiles:
    """Which files of a folder are images of its volume."""

    def test_without_preamble(self, tmp_path: Path, write_series: Write) -> None:
        pixels = write_series(tmp_path / "series")
        for path in (tmp_path / "series").iterdir():
            path.write_bytes(path.read_bytes()[132:])
        (case,) = find_cases(str(tmp_path))
        np.testing.assert_array_equal(read_volume(case["image"], 3)[0], pixels.T)

    @pytest.mark.parametrize("implicit", [True, False])
    def test_without_any_word_on_the_encoding(self, tmp_path: Path, write_series: Write, implicit: bool) -> None:
        pixels = write_series(tmp_path / "series")
        for path in (tmp_path / "series").iterdir():
            dataset = pydicom.dcmread(path)
            del dataset.file_meta
            pydicom.dcmwrite(path.with_suffix(""), dataset, implicit_vr=implicit, little_endian=True)
            path.unlink()
        (case,) = find_cases(str(tmp_path))
        np.testing.assert_array_equal(read_volume(case["image"], 3)[0], pixels.T)

    def test_compressed_as_in_many_archives(self, tmp_path: Path, write_series: Write) -> None:
        """Lossless JPEG is what pydicom alone cannot read."""
        itk = pytest.importorskip("itk")
        characters = locale.setlocale(locale.LC_CTYPE)
        owner = {"StudyInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.4"}
        pixels = write_series(tmp_path / "series", lambda index, tags: tags.update(owner))
        for path in (tmp_path / "series").iterdir():
            reader = itk.GDCMImageIO.New(KeepOriginalUID=True, CompressionType=itk.GDCMImageIOEnums.Compression_JPEG)
            image = itk.ImageFileReader[itk.Image[itk.US, 2]].New(FileName=str(path), ImageIO=reader)
            image.Update()
            writer = itk.ImageFileWriter.New(image, FileName=str(path), ImageIO=reader, UseCompression=True)
            writer.Update()
        locale.setlocale(locale.LC_CTYPE, characters)  # the writer has changed it
        assert "JPEG Lossless" in pydicom.dcmread(path).file_meta.TransferSyntaxUID.name
        np.testing.assert_array_equal(read_volume(tmp_path / "series", 3)[0], pixels.T)

    def test_what_lies_beside_the_images(self, tmp_path: Path, write_series: Write, write_enhanced: Write) -> None:
        """Files of a Mac, results of an earlier run, reports and the directory of a CD."""
        folder = tmp_path / "CD" / "IMAGES"
        pixels = write_series(folder)
        one = folder / "6.dcm"
        for path in list(folder.iterdir()):
            (folder / f"._{path.name}").write_bytes(b"\x00\x05\x16\x07" + bytes(60))
        segmentation = "1.2.840.10008.5.1.4.1.1.66.4"
        other = {"SOPInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
        copy_of(one, folder / "seg.dcm", SOPClassUID=segmentation, NumberOfFrames=2, **other)
        copy_of(one, folder / "page.dcm", SOPClassUID="1.2.840.10008.5.1.4.1.1.7", ImagePositionPatient=None, **other)
        (tmp_path / "CD" / "REPORT").mkdir()
        for name in ("REPORT/SR1", "REPORT/SR2", "DICOMDIR"):
            copy_of(one, tmp_path / "CD" / name, **REPORT)
        (folder / "viewer.txt").write_text("see page 3")
        cases = find_cases(str(tmp_path / "CD"))
        assert [case["case"] for case in cases] == ["IMAGES"]
        np.testing.assert_array_equal(read_volume(cases[0]["image"], 3)[0], pixels.T)
        assert cases.unused == {
            "DICOMDIR": "DICOM object without an image, such as a report or a directory",
            "IMAGES/page.dcm": "DICOM screenshot",
            "IMAGES/seg.dcm": "DICOM segmentation",
            "IMAGES/viewer.txt": "no image of a known format",
            "REPORT/SR1 and 1 more": "DICOM object without an image, such as a report or a directory",
        }

    def test_no_series_but_reports(self, tmp_path: Path, write_series: Write) -> None:
        write_series(tmp_path)
        for path in tmp_path.iterdir():
            copy_of(path, path, **REPORT)
        with pytest.raises(InputError, match=r"no image found \(.*: DICOM object without an image"):
            find_cases(str(tmp_path))

    @pytest.mark.parametrize("size", [0, 140, 500, 700])
    def test_a_slice_that_is_cut_off_is_no_report(self, tmp_path: Path, write_series: Write, size: int) -> None:
        """It may be the last of the stack, which would be a slice shorter without it."""
        write_series(tmp_path / "series", lambda index, tags: tags.update(ImageComments="x" * 500))
        last = tmp_path / "series" / "9.dcm"
        last.write_bytes(last.read_bytes()[:size])
        with pytest.raises(InputError, match="damaged header"):
            read_series(tmp_path / "series")

    def test_a_damaged_series_is_a_case_that_fails(self, tmp_path: Path, write_series: Write) -> None:
        write_series(tmp_path / "good")
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "1.dcm").write_bytes(b"\x00" * 300)
        assert [case["case"] for case in find_cases(str(tmp_path))] == ["bad", "good"]
        with pytest.raises(InputError, match="damaged header"):
            read_volume(tmp_path / "bad", 3)

    @pytest.mark.parametrize(
        "start", [b"", b"\x08\x00", b"\x02\x00\x00\x00UL\x04\x00", b"\x08\x00\x05\x00" + b"\xff" * 400]
    )
    def test_files_that_begin_like_dicom(self, tmp_path: Path, write_series: Write, start: bytes) -> None:
        write_series(tmp_path / "series")
        (tmp_path / "series" / "table.bin").write_bytes(start)
        assert find_cases(str(tmp_path)).unused == {"series/table.bin": "no image of a known format"}
        assert len(read_series(tmp_path / "series").frames) == 6


class TestGrid:
    """Positions and orientations that are rounded, and those that are wrong."""

    @pytest.mark.parametrize(("step", "decimals"), [(0.625, 1), (0.4, 1), (1.25, 1), (3.3, 0), (0.33, 2)])
    def test_rounded_positions(self, tmp_path: Path, write_series: Write, step: float, decimals: int) -> None:
        def move(index: int, tags: dict[str, Any]) -> None:
            tags["ImagePositionPatient"] = [0, 0, round(100 + step * index, decimals)]

        pixels = np.random.default_rng(0).integers(0, 99, (30, 5, 4)).astype(np.uint16)
        write_series(tmp_path / "series", move, pixels)
        if (step, decimals) == (3.3, 0):  # up to 0.5 mm off, 15 % of the distance: more than a rounding
            with pytest.raises(InputError, match="irregular slice distances"):
                read_volume(tmp_path / "series", 3)
            return
        volume = read_volume(tmp_path / "series", 3)
        assert volume.pixdim[2] == pytest.approx(step, abs=0.1 / 29 + 1e-6)
        seen = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "series")))
        assert volume.pixdim[2] == pytest.approx(seen.GetSpacing()[2], rel=1e-6)

    @pytest.mark.parametrize("gone", [{10}, {10, 11}, {4, 20}])
    def test_missing_slices_among_rounded_positions(self, tmp_path: Path, write_series: Write, gone: set[int]) -> None:
        def move(index: int, tags: dict[str, Any]) -> bool:
            tags["ImagePositionPatient"] = [0, 0, round(100 + 0.625 * index, 1)]
            return index not in gone

        write_series(tmp_path / "series", move, np.zeros((30, 5, 4), np.uint16))
        with pytest.raises(InputError, match=f"missing slices, {len(gone)} in a DICOM stack"):
            read_volume(tmp_path / "series", 3)

    @pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID", "FrameOfReferenceUID"])
    def test_slices_of_two_owners(self, tmp_path: Path, write_series: Write, keyword: str) -> None:
        write_series(tmp_path / "series", lambda index, tags: tags.update({keyword: f"1.2.{index // 3}"}))
        with pytest.raises(InputError, match=r"belong to 2 (patients|studies|frames)"):
            read_volume(tmp_path / "series", 3)

    def test_two_files_with_one_identifier(self, tmp_path: Path, write_series: Write) -> None:
        write_series(tmp_path / "series", lambda index, tags: tags.update(SOPInstanceUID=f"1.2.{index % 4}"))
        with pytest.raises(InputError, match="2 of 6 DICOM files have the identifier of another one"):
            read_volume(tmp_path / "series", 3)


class TestPadding:
    """What headers declare as padding becomes background."""

    @pytest.mark.parametrize(
        ("tags", "padded"),
        [
            ({"PixelPaddingValue": -2000}, [-2000]),
            ({"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}, [-2000, -1995]),
            ({"PixelPaddingValue": -1990, "PixelPaddingRangeLimit": -2000}, [-2000, -1995]),
            ({"PixelPaddingValue": 63536}, [-2000]),
            ({}, []),
        ],
    )
    def test_declared(self, tmp_path: Path, write_series: Write, tags: dict[str, Any], padded: list[int]) -> None:
        pixels = np.random.default_rng(0).integers(0, 900, (6, 5, 4)).astype(np.int16)
        pixels[:, 0, :2], pixels[2:, 4, 3] = -2000, -1995

        def edit(index: int, into: dict[str, Any]) -> None:
            into.update(PixelRepresentation=1, RescaleSlope=2, RescaleIntercept=-24)

        write_series(tmp_path / "series", edit, pixels)
        for path in (tmp_path / "series").iterdir():
            dataset = pydicom.dcmread(path)
            for name, value in tags.items():
                dataset.add_new(name, "US" if value > 0 else "SS", value)
            dataset.save_as(path)
        volume = read_volume(tmp_path / "series", 3)
        mask = np.isin(pixels, padded).T
        expected = 2.0 * pixels.T - 24
        np.testing.assert_array_equal(volume[0].numpy()[~mask], expected[~mask])
        assert volume.meta["padding"] == pytest.approx(mask.mean())
        if padded:
            assert volume[0].numpy()[mask] == pytest.approx(np.quantile(expected[~mask], 0.01))


class TestEnhanced:
    """Many frames in one file."""

    @pytest.mark.parametrize("order", [range(6), [3, 0, 5, 1, 4, 2]])
    def test_frames_lie_where_they_say(self, tmp_path: Path, write_enhanced: Write, order: list[int]) -> None:
        values = write_enhanced(tmp_path / "enhanced" / "1.dcm", order)
        volume = read_volume(tmp_path / "enhanced", 3)
        np.testing.assert_array_equal(volume[0], values.T)
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)

    def test_values_of_a_frame_are_its_own(self, tmp_path: Path, write_enhanced: Write) -> None:
        def edit(frame: int, groups: pydicom.Dataset) -> None:
            item = pydicom.Dataset()
            item.RescaleSlope, item.RescaleIntercept, item.RescaleType = frame + 1, 0, "US"
            groups.PixelValueTransformationSequence = [item]

        values = write_enhanced(tmp_path / "enhanced" / "1.dcm", edit=edit)
        expected = (values + 10) / 2 * np.arange(1, 7)[:, None, None]
        np.testing.assert_array_equal(read_volume(tmp_path / "enhanced", 3)[0], expected.T)

    def test_two_volumes_in_one_file(self, tmp_path: Path, write_enhanced: Write) -> None:
        write_enhanced(tmp_path / "enhanced" / "1.dcm", [0, 1, 2, 0, 1, 2])
        with pytest.raises(InputError, match="duplicate positions, 3 of 6"):
            read_volume(tmp_path / "enhanced", 3)

    def test_missing_frames(self, tmp_path: Path, write_enhanced: Write) -> None:
        write_enhanced(tmp_path / "enhanced" / "1.dcm", [0, 1, 3, 4, 5])
        with pytest.raises(InputError, match="missing slices, 1 in"):
            read_volume(tmp_path / "enhanced", 3)

    def test_frames_without_a_position(self, tmp_path: Path, write_enhanced: Write) -> None:
        write_enhanced(tmp_path / "enhanced" / "1.dcm", edit=lambda frame, groups: groups.pop("PlanePositionSequence"))
        with pytest.raises(InputError, match="damaged header or no position"):
            read_volume(tmp_path / "enhanced", 3)


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no folder {CASES}")
class TestSharedCases:
    """Series that once failed."""

    @pytest.mark.parametrize(
        ("folder", "cases"),
        [
            ("15_dicom_appledouble", ["data"]),
            ("16_dicom_no_preamble_skipped", ["good_series", "old_series"]),
            ("17_cd_with_dicomdir", ["SE1"]),
            ("18_seg_orientation_rounding", ["data"]),
            ("19_positions_one_decimal", ["data"]),
            ("20_pixel_padding", ["data"]),
            ("21_own_seg_inside", ["data"]),
        ],
    )
    def test_every_case_is_found_and_read(self, folder: str, cases: list[str]) -> None:
        found = find_cases(str(CASES / folder / "data"))
        assert [case["case"] for case in found] == cases
        for case in found:
            assert LoadCased("image", 3)({"image": case["image"]})["image"].shape == (1, 35, 51, 32)

    def test_nothing_depends_on_the_preamble(self) -> None:
        folder = CASES / "16_dicom_no_preamble_skipped" / "data"
        good, old = (read_volume(folder / name, 3) for name in ("good_series", "old_series"))
        np.testing.assert_array_equal(good, old)
        np.testing.assert_array_equal(good.affine, old.affine)
