# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Voxels that show nothing: padding, single wild values, and numbers that are none."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose, ScaleIntensityRangePercentilesd
from PIL import Image
from scipy.ndimage import gaussian_filter

from atlas_istn.data.transforms import ScalePercentilesd
from atlas_istn.errors import InputError
from atlas_istn.io.cases import find_cases
from atlas_istn.io.intensities import border_padding
from atlas_istn.io.loading import LoadCased, read_volume
from support import CASES, DATA, write_nifti

LIMITS = (-0.5, 5.0)
SCAN = 100 + 40 * gaussian_filter(np.random.default_rng(0).normal(size=(20, 24, 18)), 2) / 0.05
SCAN = SCAN.clip(1).astype(np.float32)
SCALE = Compose([LoadCased("image", 3), ScalePercentilesd("image", 1, 99, LIMITS)])


def scaled(folder: Path, voxels: np.ndarray) -> torch.Tensor:
    path = write_nifti(folder / "a.nii", voxels.astype(np.float32), np.eye(4))
    return SCALE({"image": str(path)})["image"]


def test_clean_images_are_scaled_as_before(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", SCAN, np.eye(4))
    old = Compose([LoadCased("image", 3), ScaleIntensityRangePercentilesd("image", 1, 99, 0, 1)])
    image = SCALE({"image": str(path)})["image"]
    torch.testing.assert_close(image, old({"image": str(path)})["image"], rtol=0, atol=0)
    assert image.meta["warnings"] == ""


@pytest.mark.parametrize("wild", [32767, -32768, 1e30])
@pytest.mark.parametrize("count", [1, 20])
def test_few_wild_voxels_change_nothing_else(tmp_path: Path, wild: float, count: int) -> None:
    voxels = SCAN.copy()
    places = np.random.default_rng(1).choice(voxels.size, count, replace=False)
    voxels.flat[places] = wild
    clean, image = scaled(tmp_path, SCAN).numpy()[0], scaled(tmp_path, voxels).numpy()[0]
    others = np.ones(voxels.size, bool)
    others[places] = False
    np.testing.assert_allclose(image.flat[others], clean.flat[others], atol=0.03)
    assert image.min() >= LIMITS[0]
    assert image.max() <= LIMITS[1]


@pytest.mark.parametrize("value", [-1024, -32768, 4095, 65535])
@pytest.mark.parametrize("where", ["plane", "slab", "wedge", "circle"])
def test_padding_at_the_border_counts_for_nothing(tmp_path: Path, value: float, where: str) -> None:
    x, y, z = np.indices(SCAN.shape)
    inside = {"plane": x > 0, "slab": z < 13, "wedge": x + y > 14, "circle": np.hypot(x - 9.5, y - 11.5) < 11}[where]
    voxels = np.where(inside, SCAN, value)
    image = scaled(tmp_path, voxels)
    low, high = np.percentile(SCAN[inside], (1, 99))
    np.testing.assert_allclose(image.numpy()[0][inside], (SCAN[inside] - low) / (high - low), atol=0.005)
    np.testing.assert_allclose(image.numpy()[0][~inside], 0, atol=0.005)
    assert image.meta["padding"] == pytest.approx((~inside).mean())
    assert f"{(~inside).mean():.1%} of the voxels are padding" in image.meta["warnings"]


def test_padding_of_two_values(tmp_path: Path) -> None:
    voxels = SCAN.copy()
    voxels[:2], voxels[-3:] = -1024, 3071
    image = scaled(tmp_path, voxels)
    assert image.meta["padding"] == pytest.approx(5 / 20)
    np.testing.assert_allclose(image[0, :2], 0, atol=0.005)
    np.testing.assert_allclose(image[0, -3:], 0, atol=0.005)


def test_what_is_no_padding() -> None:
    for value in (0, -1, 99):  # background, close to the others, among them
        voxels = SCAN.copy()
        voxels[0] = value
        assert not border_padding(voxels).any()
    voxels = SCAN.copy()
    voxels[5, 5:9] = -1024  # not at the border
    voxels[0, 14:] = -1024  # less than half of a plane
    assert not border_padding(voxels).any()
    assert not border_padding(np.full((4, 4, 4), -1024.0)).any()  # refused elsewhere


@pytest.mark.parametrize("name", ["brain_2d", "mouse_brain", "hippocampus", "cardiac_mr", "letter_b"])
def test_real_images_keep_every_voxel(name: str) -> None:
    """Those of skull-stripped brains above all, whose background is zero and fills the border."""
    if not (DATA / name).is_dir():
        pytest.skip(f"no real data in {DATA}: set ATLAS_ISTN_DATA")
    cases = find_cases(str(DATA / name), "bssfp" if name == "cardiac_mr" else "training")[:3]
    for case in cases:
        dim = 2 if case["image"].endswith(".png") else 3
        image = LoadCased("image", dim)({"image": case["image"]})["image"]
        torch.testing.assert_close(image, read_volume(case["image"], dim), rtol=0, atol=0)
        assert (image.meta["padding"], image.meta["warnings"]) == (0, "")


@pytest.mark.skipif(not (DATA / "hippocampus").is_dir(), reason=f"no real data in {DATA}: set ATLAS_ISTN_DATA")
def test_the_shipped_limits_leave_clean_hippocampi_alone() -> None:
    for case in find_cases(str(DATA / "hippocampus"), "test"):
        image = SCALE({"image": case["image"]})["image"]
        assert LIMITS[0] < image.min()
        assert image.max() < LIMITS[1]


def test_an_image_that_shows_almost_nothing_is_refused(tmp_path: Path) -> None:
    voxels = np.zeros_like(SCAN)
    voxels[3, 3, 3] = 5
    with pytest.raises(RuntimeError) as caught:
        scaled(tmp_path, voxels)
    assert isinstance(caught.value.__cause__, InputError)
    assert "percentiles 1 and 99 are both 0" in str(caught.value.__cause__)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_numbers_are_refused(tmp_path: Path, dtype: type) -> None:
    path = write_nifti(tmp_path / "a.nii", SCAN.astype(dtype), np.eye(4))
    with pytest.raises(InputError, match=r"a\.nii: the image holds complex numbers.*magnitudes"):
        read_volume(path, 3)


def test_colours_are_refused(tmp_path: Path) -> None:
    voxels = np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    path = write_nifti(tmp_path / "a.nii", voxels, np.eye(4))
    with pytest.raises(InputError, match=r"a\.nii: the image holds several numbers in each voxel"):
        read_volume(path, 3)


def test_a_png_that_unpacks_to_more_than_is_sane_is_refused(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("L", (8, 8)).save(content, "PNG")
    size = struct.pack(">II", 20000, 20000)  # 400 MB
    header = b"IHDR" + size + content.getvalue()[24:29]
    checked = header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "bomb.png").write_bytes(content.getvalue()[:12] + checked + content.getvalue()[33:])
    with pytest.raises(InputError, match=r"bomb\.png: the image cannot be read \(DecompressionBombError"):
        read_volume(tmp_path / "bomb.png", 2)


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no folder {CASES}")
def test_scans_that_were_once_ruined() -> None:
    plain = SCALE({"image": str(CASES / "05_one_hot_voxel" / "plain.nii.gz")})["image"]
    hot = SCALE({"image": str(CASES / "05_one_hot_voxel" / "hot.nii.gz")})["image"]
    assert int((hot != plain).sum()) == 1
    padded = SCALE({"image": str(CASES / "06_constant_border" / "pad_minus1024_one_plane.nii.gz")})["image"]
    assert "2.7% of the voxels are padding" in padded.meta["warnings"]
    close = (padded - plain).abs() < 0.05
    assert close.float().mean() > 0.96
    with pytest.raises(InputError, match="complex numbers"):
        read_volume(CASES / "07_complex" / "scan.nii.gz", 3)
    series = LoadCased("image", 3)({"image": str(CASES / "20_pixel_padding" / "data")})["image"]
    assert 0.1 < series.meta["padding"] < 0.2
    assert series.min() > -100
