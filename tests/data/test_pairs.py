# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Structures of interest as maps, and pairs on one grid."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from atlas_istn.data.pairs import AlignPaird, LoadPaird
from atlas_istn.data.structures import StructureReader, match_points
from atlas_istn.errors import InputError
from atlas_istn.io.points import read_points
from support import write_nifti

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def image_of(values: np.ndarray, affine: np.ndarray = AFFINE) -> MetaTensor:
    return MetaTensor(torch.from_numpy(values.astype(np.float32))[None], affine=torch.from_numpy(affine))


def labels(path: Path, dim: int) -> tuple[Path, np.ndarray]:
    values = np.zeros((12, 10, 8)[:dim], np.uint8)
    values[2:5, 2:5] = 7
    values[6:9, 2:5] = 3
    return write_nifti(path / "label.nii", values, AFFINE), values


def test_labels_become_one_map_or_several(tmp_path: Path, dim: int) -> None:
    path, values = labels(tmp_path, dim)
    image = image_of(values)
    apart = StructureReader("labels", dim, [0, 3, 7], merge=False)(str(path), image)
    np.testing.assert_array_equal(apart.numpy(), np.stack([values == 3, values == 7]))
    merged = StructureReader("labels", dim, [0, 3, 7])(str(path), image)
    np.testing.assert_array_equal(merged.numpy(), (values > 0)[None])


def test_values_that_are_no_structures_are_refused_or_taken_for_background(tmp_path: Path) -> None:
    path, values = labels(tmp_path, 2)
    with pytest.raises(InputError, match="7"):
        StructureReader("labels", 2, [0, 3])(str(path), image_of(values))
    found = StructureReader("labels", 2, [0, 3], others="background")(str(path), image_of(values))
    np.testing.assert_array_equal(found.numpy(), (values == 3)[None])


def test_a_distance_map_is_one_half_at_the_border_and_rises_inwards(tmp_path: Path) -> None:
    values = np.zeros((20, 9), np.uint8)
    values[10:] = 1
    path = write_nifti(tmp_path / "half.nii", values, AFFINE)
    (found,) = StructureReader("labels", 2, [0, 1], distance=8.0)(str(path), image_of(values)).numpy()
    place = 2.0 * (np.arange(20) - 9.5)  # mm from the border
    np.testing.assert_allclose(found[:, 4], np.clip(0.5 + place / 16, 0, 1), atol=1e-6)


def test_a_map_is_scaled_by_its_unit_and_cannot_exceed_it(tmp_path: Path) -> None:
    values = np.linspace(0, 200, 80).reshape(10, 8).astype(np.float32)
    path = str(write_nifti(tmp_path / "map.nii", values, AFFINE))
    found = StructureReader("maps", 2, unit=255)(path, image_of(values))
    np.testing.assert_allclose(found[0].numpy(), values / 255, rtol=1e-6)
    with pytest.raises(InputError, match=r"a map from 0 to 200.*structure_unit"):
        StructureReader("maps", 2)(path, image_of(values))


def test_landmarks_are_gaussians_in_millimetres_where_the_points_lie(tmp_path: Path, dim: int) -> None:
    path = tmp_path / "points.csv"
    # LPS millimetres: x and y have the other sign in the image's RAS world.
    rows = [(-8.0, -6.0, 4.0), (-16.0, -10.0, 8.0)]
    path.write_text("x,y,z\n" + "".join(f"{x},{y},{z if dim == 3 else 0}\n" for x, y, z in rows))
    image = image_of(np.zeros((12, 10, 8)[:dim]))
    maps = StructureReader("landmarks", dim, merge=False, width=4.0)(str(path), image)
    assert np.unravel_index(int(maps[0].argmax()), maps.shape[1:]) == (4, 3, 2)[:dim]
    assert np.unravel_index(int(maps[1].argmax()), maps.shape[1:]) == (8, 5, 4)[:dim]
    first = maps[0].numpy()
    beside = first[(6, 3, 2)[:dim]]  # two voxels, 4 mm, from the first point
    assert beside == pytest.approx(np.exp(-0.5), rel=1e-5)
    merged = StructureReader("landmarks", dim, width=4.0)(str(path), image)
    np.testing.assert_array_equal(merged[0].numpy(), maps.numpy().max(axis=0))


def test_points_are_matched_by_their_names(tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}.csv" for name in "abc")
    first.write_text("name,x,y,z\np,1,1,1\nq,2,2,2\n")
    second.write_text("name,x,y,z\nq,4,4,4\np,3,3,3\n")
    third.write_text("name,x,y,z\nq,4,4,4\n")
    files = [read_points(path, 3) for path in (first, second, third)]
    moving, fixed = match_points(*files[:2])
    assert moving.names == fixed.names == ("q", "p")
    np.testing.assert_array_equal(moving.points[:, 0], [2, 1])
    with pytest.raises(InputError, match="'p' is in one file only"):
        match_points(files[0], files[2])
    third.write_text("x,y,z\n4,4,4\n")
    with pytest.raises(InputError, match="differ in number: 2 of the moving image, 1 of the fixed"):
        match_points(files[0], read_points(third, 3))
    assert len(match_points(files[0], files[2], any_number=True)[0].points) == 2


def test_a_pair_is_read_with_its_structures(tmp_path: Path) -> None:
    path, values = labels(tmp_path, 3)
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random(values.shape), AFFINE), tmp_path / "image.nii.gz")
    image = str(tmp_path / "image.nii.gz")
    pair = {"moving": image, "fixed": image, "moving_structure": str(path), "fixed_structure": str(path)}
    found = LoadPaird(3, StructureReader("labels", 3, [0, 3, 7]))(pair)
    assert set(found) == {"moving", "fixed", "moving_structures", "fixed_structures"}
    assert set(LoadPaird(3, StructureReader("none", 3))(pair)) == {"moving", "fixed"}


def test_the_world_aligns_images_that_share_it(dim: int) -> None:
    shape = (12, 10, 8)[:dim]
    values = np.random.default_rng(0).random(shape)
    shifted = AFFINE.copy()
    shifted[:dim, 3] = 4.0  # two voxels
    pair = {"moving": image_of(values), "fixed": image_of(values, shifted)}
    moved = AlignPaird("moving")(pair)["moving"][0].numpy()
    inner = (slice(0, 6),) * dim
    np.testing.assert_allclose(moved[inner], values[(slice(2, 8),) * dim], atol=1e-5)
    far = AFFINE.copy()
    far[0, 3] = 1000.0
    with pytest.raises(InputError, match="do not overlap"):
        AlignPaird("moving")({"moving": image_of(values), "fixed": image_of(values, far)})
