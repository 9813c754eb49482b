# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Where voxels lie: headers that tools read differently, compared with SimpleITK and nibabel; grids and their sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from atlas_istn.errors import InputError
from atlas_istn.io.geometry import GEOMETRY_FIELDS, check_resampled_size, corner_distance, read_nifti_header
from atlas_istn.io.loading import read_volume
from atlas_istn.io.outputs import write_image, write_labelmap
from support import CASES, write_nifti

sitk.ProcessObject.SetGlobalWarningDisplay(False)

VOXELS = np.random.default_rng(0).integers(0, 900, (5, 6, 7)).astype(np.int16)
SIZES = np.array([0.9, 1.5, 2.5])
AFFINE = np.eye(4)
AFFINE[:3, :3] = Rotation.from_euler("x", 30, degrees=True).as_matrix() * SIZES * [-1, 1, 1]
AFFINE[:3, 3] = [20, -30, 40]
TURN = np.eye(4)
TURN[:3, :3] = Rotation.from_euler("z", 12, degrees=True).as_matrix()
SHEAR = np.eye(4)
SHEAR[0, 1] = 0.3


def seen_by_itk(path: Path) -> np.ndarray:
    """RAS affine of a file as ITK reads it."""
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def test_an_ordinary_header_needs_no_word(tmp_path: Path) -> None:
    volume = read_volume(write_nifti(tmp_path / "a.nii", VOXELS, AFFINE), 3)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    assert volume.meta["warnings"] == ""


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_world_is_that_of_itk_or_it_is_said(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    draw = data.draw
    other = draw(st.sampled_from([np.eye(4), TURN, SHEAR, np.diag([1, 1, 1.2, 1])]))
    sizes = np.ones(8)
    sizes[1:4] = SIZES * draw(st.sampled_from([(1, 1, 1), (1, 1, -1), (-1, -1, -1)]))
    fields: dict[str, Any] = {
        "sform": AFFINE @ other,
        "qform_code": draw(st.sampled_from([0, 1, 2])),
        "sform_code": draw(st.sampled_from([0, 1, 2, 4])),
        "pixdim": [draw(st.sampled_from([1, -1])), *sizes[1:]],
        "xyzt_units": draw(st.sampled_from([0, 1, 2, 3])),
    }
    path = write_nifti(tmp_path_factory.mktemp("forms") / "a.nii", VOXELS, AFFINE, **fields)
    volume = read_volume(path, 3)
    try:
        apart = corner_distance(volume.affine, seen_by_itk(path), VOXELS.shape)
    except RuntimeError:
        assert "may refuse the file" in volume.meta["warnings"]
        return
    assert apart < 0.01 or "exported transforms do not fit" in volume.meta["warnings"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sform": TURN @ AFFINE, "sform_code": 2}, "the qform was taken, as ITK and 3D Slicer do; nibabel takes the"),
        ({"pixdim": [1, *SIZES, 1, 1, 1, 1], "sform_code": 2}, "they mirror each other"),
        ({"sform": TURN @ AFFINE}, "the sform was taken, as ITK and 3D Slicer do"),
        ({"qform_code": 0, "sform_code": 0}, "states no orientation"),
        ({"sform": AFFINE @ np.diag([1, 1, 1.2, 1])}, "voxels of 0.9 × 1.5 × 3 mm, pixdim of 0.9 × 1.5 × 2.5"),
        ({"sform": AFFINE @ SHEAR, "qform_code": 0}, "not at right angles"),
        ({"pixdim": [-1, -0.9, 1.5, 2.5, 1, 1, 1, 1]}, "pixdim is negative"),
        ({"pixdim": [1, 0, 0, 0, 1, 1, 1, 1]}, "pixdim holds no voxel size"),
        ({"srow_x": [np.nan, 0, 0, 0]}, "the sform of the header is no map"),
    ],
    ids=["sform 2", "mirror", "sform 1", "no code", "other voxels", "sheared", "negative", "zero", "no number"],
)
def test_results_lie_where_the_scan_lies_and_the_reader_is_told(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    scan = write_nifti(tmp_path / "scan.nii", VOXELS, AFFINE, **fields)
    volume = read_volume(scan, 3)
    assert words in volume.meta["warnings"]
    write_labelmap(VOXELS % 3, np.asarray(volume.affine), [0, 1, 2], tmp_path / "seg.nii.gz", scan)
    write_image(VOXELS.astype(np.float32), np.asarray(volume.affine), tmp_path / "image.nii.gz", scan)
    for result in (tmp_path / "seg.nii.gz", tmp_path / "image.nii.gz"):
        source, written = read_nifti_header(scan), read_nifti_header(result)
        for field in GEOMETRY_FIELDS:
            np.testing.assert_array_equal(source[field], written[field], field)
        np.testing.assert_array_equal(read_volume(result, 3).affine, volume.affine)
    np.testing.assert_array_equal(nib.load(tmp_path / "seg.nii.gz").dataobj, VOXELS % 3)
    if "angles" not in words:
        np.testing.assert_array_equal(seen_by_itk(tmp_path / "seg.nii.gz"), seen_by_itk(scan))


def test_nothing_but_geometry_goes_from_scan_to_result(tmp_path: Path) -> None:
    scan = write_nifti(tmp_path / "a.nii", VOXELS, AFFINE, descrip=b"Secret^Name", aux_file=b"Secret", intent_code=1002)
    write_labelmap(VOXELS % 2, AFFINE, [0, 1], tmp_path / "seg.nii", scan)
    assert b"Secret" not in (tmp_path / "seg.nii").read_bytes()
    assert read_nifti_header(tmp_path / "seg.nii")["intent_code"] == 0


@pytest.mark.parametrize("code", [1, 2])
def test_the_header_of_nifti_2_is_kept_too(tmp_path: Path, code: int) -> None:
    image = nib.Nifti2Image(VOXELS, AFFINE)
    image.set_qform(AFFINE, code)
    image.set_sform(TURN @ AFFINE, code)
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii", 3)
    np.testing.assert_allclose(volume.affine, AFFINE if code == 2 else TURN @ AFFINE, atol=1e-5)
    write_labelmap(VOXELS % 2, np.asarray(volume.affine), [0, 1], tmp_path / "seg.nii", tmp_path / "a.nii")
    np.testing.assert_allclose(nib.load(tmp_path / "seg.nii").get_qform(), AFFINE, atol=1e-4)
    np.testing.assert_allclose(nib.load(tmp_path / "seg.nii").get_sform(), TURN @ AFFINE, atol=1e-4)


@pytest.mark.parametrize(("code", "factor"), [(1, 1e-3), (3, 1e3), (0, 1.0), (2, 1.0), (8 + 2, 1.0)])
def test_lengths_are_converted_to_millimetres(tmp_path: Path, code: int, factor: float) -> None:
    given = np.diag([factor, factor, factor, 1.0]) @ AFFINE
    volume = read_volume(write_nifti(tmp_path / "a.nii", VOXELS, given, xyzt_units=code), 3)
    np.testing.assert_allclose(volume.affine, AFFINE, rtol=1e-5, atol=1e-4)
    assert not volume.meta["warnings"]


@pytest.mark.parametrize("code", [4, 5, 6, 7])
def test_units_that_are_none_are_refused(tmp_path: Path, code: int) -> None:
    with pytest.raises(InputError, match=rf"a\.nii: the unit of the voxel size has the code {code}"):
        read_volume(write_nifti(tmp_path / "a.nii", VOXELS, AFFINE, xyzt_units=code), 3)


@pytest.mark.parametrize(
    "fields",
    [
        {"srow_x": [np.nan] * 4, "qform_code": 0},
        {"srow_x": [0] * 4, "srow_y": [0] * 4, "srow_z": [0] * 4, "qform_code": 0},
        {"pixdim": [1, np.nan, 1, 1, 1, 1, 1, 1], "sform_code": 0},
        {"pixdim": [1, 0, 0, 0, 1, 1, 1, 1], "sform_code": 0, "qform_code": 0},
    ],
)
def test_headers_without_a_world_are_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"a\.nii: neither sform nor qform of the header is a map"):
        read_volume(write_nifti(tmp_path / "a.nii", VOXELS, AFFINE, **fields), 3)


def image_of(shape: tuple[int, ...], size: float) -> MetaTensor:
    affine = torch.diag(torch.tensor([size, size, size, 1.0]))
    return MetaTensor(torch.zeros(1, *shape), affine=affine, meta={"source": "scan.nii"})


def test_sizes_are_refused_by_arithmetic() -> None:
    check_resampled_size(image_of((40, 40, 40), 1.0), [1.0] * 3)
    check_resampled_size(image_of((40, 40), 3.0), [1.0] * 2)
    with pytest.raises(InputError, match=r"scan\.nii: 40000 × 40000 × 40000 voxels need 3.81e\+06 GiB"):
        check_resampled_size(image_of((40, 40, 40), 1000.0), [1.0] * 3)
    with pytest.raises(InputError, match=r"0\.04 × 0\.04 × 0\.04 mm large, less than one voxel of the model"):
        check_resampled_size(image_of((40, 40, 40), 0.001), [1.0] * 3)


def test_a_header_that_claims_more_than_the_memory_is_refused(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "bomb.nii", VOXELS, AFFINE, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])
    with pytest.raises(InputError, match=r"bomb\.nii: 32767 × 32767 × 32767 voxels need"):
        read_volume(path, 3)


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no folder {CASES}")
@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("01_no_orientation_codes/scan.nii.gz", "states no orientation"),
        ("02_sform_qform_differ/scan.nii.gz", "sform and qform of the header disagree"),
        ("03_sform_spacing_not_pixdim/scan_sform_only.nii.gz", "pixdim was taken"),
        ("03_sform_spacing_not_pixdim/scan_with_qform.nii.gz", "pixdim was taken"),
        ("04_negative_pixdim/scan.nii.gz", "pixdim is negative"),
        ("08_units_micron_metre/g01_micron.nii.gz", ""),
        ("08_units_micron_metre/g02_metre.nii.gz", ""),
    ],
)
def test_scans_that_once_lost_their_place(tmp_path: Path, file: str, words: str) -> None:
    volume = read_volume(CASES / file, 3)
    assert words in volume.meta["warnings"]
    np.testing.assert_allclose(volume.pixdim, 1.0, rtol=1e-3)
    shape = tuple(volume.shape[1:])
    write_labelmap(np.zeros(shape, int), np.asarray(volume.affine), [0, 1], tmp_path / "seg.nii.gz", CASES / file)
    assert corner_distance(seen_by_itk(CASES / file), seen_by_itk(tmp_path / "seg.nii.gz"), shape) < 1e-6


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no folder {CASES}")
def test_grids_that_differ_by_rounding_are_one() -> None:
    from atlas_istn.io.loading import LoadCased

    folder = CASES / "12_label_affine_4um"
    entry = json.loads((folder / "dataset.json").read_text())["test"][0]
    LoadCased(["image", "label"], 3, [0, 1, 2])({key: str(folder / path) for key, path in entry.items()})
