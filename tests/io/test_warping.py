# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Resampling between grids of any placement, against SimpleITK."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from atlas_istn.io.itk_transforms import affine_transform, write_transform
from atlas_istn.io.loading import read_volume
from atlas_istn.io.outputs import world_transforms
from atlas_istn.io.warping import warp_labels, warp_volume, write_warped
from atlas_istn.spatial import Transform, affine_matrix


def placed(turn: float, sizes: tuple[float, ...], origin: tuple[float, ...]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec([turn, 0.1, -turn]).as_matrix() * sizes
    affine[:3, 3] = origin
    return affine


def test_images_of_any_placement_move_as_in_simpleitk(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, shape, affine in (
        ("moving", (14, 12, 10), placed(0.3, (2.0, 1.5, 2.5), (3.0, -4.0, 8.0))),
        ("fixed", (12, 13, 9), placed(-0.2, (1.5, 2.0, 2.0), (5.0, -2.0, 9.0))),
    ):
        nib.save(nib.Nifti1Image(random.random(shape).astype(np.float32), affine), tmp_path / f"{name}.nii.gz")
    moving, fixed = (read_volume(tmp_path / f"{name}.nii.gz", 3) for name in ("moving", "fixed"))
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec([0.1, -0.2, 0.3]).as_matrix() * 1.1
    matrix[:3, 3] = [1.0, 2.0, -3.0]
    transform = affine_transform(matrix)
    write_transform(transform, tmp_path / "map.h5")
    ours = warp_volume(moving, fixed, transform)[0]
    images = [SimpleITK.ReadImage(str(tmp_path / f"{name}.nii.gz")) for name in ("moving", "fixed")]
    theirs = SimpleITK.Resample(*images, SimpleITK.ReadTransform(str(tmp_path / "map.h5")), SimpleITK.sitkLinear)
    different = np.abs(ours - SimpleITK.GetArrayFromImage(theirs).T) > 1e-3
    assert different.mean() < 0.002  # points on the very border are inside for one and outside for the other
    written = write_warped(ours, fixed, str(tmp_path / "warped"))
    np.testing.assert_allclose(nib.load(written).affine, nib.load(tmp_path / "fixed.nii.gz").affine, atol=1e-6)


def test_an_affine_transform_on_the_grid_is_one_matrix_in_the_world(dim: int) -> None:
    limits = torch.tensor([4.0] * dim + [0.5] * (1 if dim == 2 else 3) + [0.3] * dim)
    parameters = 0.5 * limits[None]
    shape, spacing = (16, 12, 10)[:dim], (1.0, 2.0, 1.5)[:dim]
    transform = Transform(None, affine_matrix(parameters, limits), shape, spacing)
    affines = [placed(0.2, (1.0, 2.0, 1.5), (1.0, 2.0, 3.0)) for _ in range(2)]
    to_fixed, to_moving = world_transforms(transform, *affines)
    assert len(to_fixed.parts) == 1
    points = np.random.default_rng(0).normal(0, 5, (6, dim))
    np.testing.assert_allclose(to_moving(to_fixed(points)), points, atol=1e-9)


def test_labels_keep_their_values_and_pictures_their_format(tmp_path: Path) -> None:
    pixels = np.zeros((10, 12), np.uint8)
    pixels[2:6, 3:8] = 200
    Image.fromarray(pixels).save(tmp_path / "labels.png")
    labels = read_volume(tmp_path / "labels.png", 2)
    moved = warp_labels(labels, labels, lambda points: points + np.array([2.0, 1.0]))  # LPS is the pixels' own order
    path = write_warped(moved, labels, str(tmp_path / "moved"), labels=True)
    found = np.asarray(Image.open(path))
    assert path.suffix == ".png"
    np.testing.assert_array_equal(found[1:5, 1:6], pixels[2:6, 3:8])
    assert set(np.unique(found)) == {0, 200}
    assert found.sum() == pytest.approx(pixels.sum())
