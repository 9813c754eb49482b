# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Files of a case and of a run: geometry as other tools read it, and files that appear whole or not at all."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from atlas_istn.errors import InputError
from atlas_istn.io.files import check_writable, write_whole
from atlas_istn.io.loading import read_volume
from atlas_istn.io.outputs import (
    atlas_grid_affine,
    write_csv,
    write_image,
    write_json,
    write_labelmap,
    write_probability,
    write_transforms,
)
from atlas_istn.io.results import image_dimensions
from atlas_istn.spatial import Transform


@settings(max_examples=25, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 5)] * 3),
    flip=st.booleans(),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
)
def test_other_tools_see_the_same_grid(
    tmp_path_factory: pytest.TempPathFactory, angles: tuple, spacing: tuple, flip: bool, origin: tuple
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    affine[:3, 0] *= -1 if flip else 1
    affine[:3, 3] = origin
    path = tmp_path_factory.mktemp("grid") / "labels.nii.gz"
    labels = np.random.default_rng(0).integers(0, 3, (3, 4, 5))
    write_labelmap(labels, affine, [0, 1, 2], path)

    image = nib.load(path)
    np.testing.assert_array_equal(image.dataobj, labels)
    # The header holds single precision: 1e-7 of 500 mm, and the quaternion in the qform loses as much again.
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    np.testing.assert_allclose(image.get_qform(), affine, atol=5e-3)
    seen = sitk.ReadImage(str(path))
    for index in ((0, 0, 0), (2, 3, 4)):
        x, y, z = (affine @ [*index, 1])[:3]
        np.testing.assert_allclose(seen.TransformIndexToPhysicalPoint(index), (-x, -y, z), atol=5e-3)


def test_a_sheared_grid_has_no_qform(tmp_path: Path) -> None:
    affine = np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    write_image(np.zeros((2, 3, 4), np.float32), affine, tmp_path / "image.nii.gz")
    image = nib.load(tmp_path / "image.nii.gz")
    np.testing.assert_allclose(image.affine, affine, atol=1e-6)
    assert image.get_qform(coded=True)[1] == 0


@pytest.mark.parametrize(("values", "dtype"), [([0, 255], np.uint8), ([0, 1000], np.uint16)])
@pytest.mark.parametrize("suffix", [".png", ".nii.gz"])
def test_labelmaps_hold_the_values_of_the_data_set(tmp_path: Path, suffix: str, values: list[int], dtype: type) -> None:
    labels = np.random.default_rng(0).integers(0, 2, (5, 7))  # x, y
    path = tmp_path / f"labels{suffix}"
    write_labelmap(labels, np.diag([-1.0, -1.0, 1.0, 1.0]), values, path)
    found = np.asarray(Image.open(path)).T if suffix == ".png" else np.asanyarray(nib.load(path).dataobj)
    np.testing.assert_array_equal(found, np.asarray(values)[labels])
    assert suffix == ".png" or found.dtype == dtype


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([0, 70000], np.int32), ([0, 614454277, 614454278], np.int32), ([0, 2**32 - 1], np.uint32), ([-1, 5], np.int32)],
)
def test_labels_of_32_bits(tmp_path: Path, values: list[int], dtype: type) -> None:
    labels = np.random.default_rng(0).integers(0, len(values), (5, 7, 3))
    path = tmp_path / "labels.nii.gz"
    write_labelmap(labels, np.eye(4), values, path)
    found = np.asanyarray(nib.load(path).dataobj)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.array(values)[labels])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), np.array(values)[labels].T)
    np.testing.assert_array_equal(read_volume(path, 3)[0].numpy(), np.array(values)[labels])


@pytest.mark.parametrize(
    ("name", "values", "most"),
    [("a.png", [0, 65536], 65535), ("a.png", [-1, 1], 65535), ("a.nii", [0, 2**32], 2**32 - 1)],
)
def test_labels_that_the_format_does_not_hold(tmp_path: Path, name: str, values: list[int], most: int) -> None:
    with pytest.raises(InputError, match=rf"the label values go from .* Expected whole numbers up to {most}"):
        write_labelmap(np.zeros((4, 5), int), np.eye(3), values, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_channels_are_read_as_channels(tmp_path: Path) -> None:
    """A 2D atlas with channels is a 2D vector image to SimpleITK, a 3D one a 4D image."""
    rng = np.random.default_rng(0)
    plane, solid = (rng.random((*shape, 3)).astype(np.float32) for shape in ((6, 8), (6, 8, 4)))
    write_image(plane, atlas_grid_affine((6, 8), (2, 3)), tmp_path / "plane.nii.gz")
    write_image(solid, atlas_grid_affine((6, 8, 4), (2, 3, 1)), tmp_path / "solid.nii.gz")
    seen = sitk.ReadImage(str(tmp_path / "plane.nii.gz"))
    assert (seen.GetDimension(), seen.GetNumberOfComponentsPerPixel()) == (2, 3)
    assert seen.GetSpacing() == (2.0, 3.0)
    assert seen.TransformContinuousIndexToPhysicalPoint((2.5, 3.5)) == (0.0, 0.0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(seen), plane.transpose(1, 0, 2))
    seen = sitk.ReadImage(str(tmp_path / "solid.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(seen), solid.transpose(3, 2, 1, 0))


@pytest.mark.parametrize("like", [False, True])
def test_probabilities_take_a_byte_and_are_read_as_probabilities(tmp_path: Path, like: bool) -> None:
    affine = np.diag([-1.0, 2.0, 3.0, 1.0])
    image = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((6, 5, 4), np.float32), affine), image)
    soft = np.random.default_rng(0).uniform(-0.1, 1.1, (6, 5, 4)).astype(np.float32)
    write_probability(soft, affine, tmp_path / "p.nii.gz", image if like else "")
    assert nib.load(tmp_path / "p.nii.gz").get_data_dtype() == np.uint8
    for found in (
        nib.load(tmp_path / "p.nii.gz").get_fdata(),
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "p.nii.gz"))).T,
        read_volume(tmp_path / "p.nii.gz", 3)[0].numpy(),
    ):
        np.testing.assert_allclose(found, soft.clip(0, 1), atol=0.5 / 255 + 1e-6)
        assert (found.min(), found.max()) == pytest.approx((0, 1))


def test_the_centre_of_the_atlas_is_the_origin_of_its_world() -> None:
    affine = atlas_grid_affine((5, 8, 3), (1.0, 0.5, 2.0))
    np.testing.assert_allclose(affine @ [2.0, 3.5, 1.0, 1.0], [0, 0, 0, 1])
    np.testing.assert_allclose(np.diag(affine), [1.0, 0.5, 2.0, 1.0])


@pytest.mark.parametrize("dim", [2, 3])
def test_transforms_map_world_points_as_ours_map_voxels(tmp_path: Path, dim: int) -> None:
    shape, spacing = (8, 10, 12)[:dim], (1.0, 2.0, 1.5)[:dim]
    generator = torch.Generator().manual_seed(0)
    coarse = (1, dim, *(n // 2 for n in shape))
    velocity = 0.3 * torch.randn(coarse, generator=generator)
    affine = torch.eye(dim, dim + 1)[None] + 0.1 * torch.randn(1, dim, dim + 1, generator=generator)
    transform = Transform(velocity, affine, shape, spacing)
    subject = np.eye(4)  # 4x4 also in 2D, as MONAI has it
    subject[:2, :2] = np.array([[0.0, -1.0], [1.0, 0.0]]) * spacing[:2]
    subject[2, 2] = spacing[2] if dim == 3 else 1.0
    subject[:2, 3] = (30.0, -40.0)
    write_transforms(transform, subject, lambda name: tmp_path / f"{name}.h5")

    atlas = np.eye(4)
    atlas[:dim, :dim] = np.diag(spacing)
    atlas[:dim, 3] = atlas_grid_affine(shape, spacing)[:dim, dim]
    to_lps = np.array([-1.0, -1.0, 1.0])[:dim]
    grids = {
        "atlas_to_subject": (subject, atlas, transform.moving_to_fixed()),
        "subject_to_atlas": (atlas, subject, transform.fixed_to_moving()),
    }
    for name, (start, end, displacement) in grids.items():
        itk = sitk.ReadTransform(str(tmp_path / f"{name}.h5"))
        for voxel in np.ndindex(*(n // 2 for n in shape)):
            index = 2 * np.asarray(voxel)
            moved = index + displacement[(0, slice(None), *index.tolist())].numpy()
            point, expected = (
                (grid @ np.pad(v, (0, 4 - dim)) + grid[:, 3])[:dim] * to_lps
                for grid, v in ((start, index), (end, moved))
            )
            # Φ is sampled on its grid: exact but for single precision. Φ⁻¹ interpolates φ⁻¹ at the same places as ITK.
            np.testing.assert_allclose(itk.TransformPoint([float(x) for x in point]), expected, atol=1e-3)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    write_whole(target, lambda part: part.write_text("first"))

    def fail(part: Path) -> None:
        part.write_text("half")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_whole(target, fail)
    assert target.read_text() == "first"
    assert list(target.parent.iterdir()) == [target]


def test_two_processes_with_one_number_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    """Such as those of two containers that write to one folder."""
    target = tmp_path / "file.txt"

    def write(part: Path) -> None:
        write_whole(target, lambda other: other.write_text("other"))
        part.write_text("this")

    write_whole(target, write)
    assert target.read_text() == "this"
    assert list(tmp_path.iterdir()) == [target]


def test_folders_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for folder in (tmp_path / "file", tmp_path / "file" / "inner"):
        with pytest.raises(InputError, match="cannot be written"):
            check_writable(folder)
        with pytest.raises(InputError, match="cannot be written"):
            write_json({}, folder / "report.json")
    check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_tables_and_reports_keep_every_character(tmp_path: Path) -> None:
    rows = [{"case": "a", "warnings": "10 × 20, …"}, {"case": "b", "error": "two, commas"}]
    write_csv(rows, tmp_path / "summary.csv")
    with (tmp_path / "summary.csv").open(newline="", encoding="utf-8") as stream:
        assert [{k: v for k, v in row.items() if v} for row in csv.DictReader(stream)] == rows
    write_json({"Φ": 1.5}, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == {"Φ": 1.5}


def test_a_single_slice_stays_one(tmp_path: Path) -> None:
    affine = np.diag([1.5, 1.2, 8.0, 1.0])
    image = np.random.default_rng(0).normal(size=(5, 4, 1)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "image.nii.gz")
    write_labelmap(np.eye(5, 4, dtype=int), affine, [0, 1], tmp_path / "seg.nii.gz", tmp_path / "image.nii.gz")
    written = nib.load(tmp_path / "seg.nii.gz")
    assert written.shape == (5, 4, 1)
    np.testing.assert_allclose(written.affine, affine)
    np.testing.assert_array_equal(read_volume(tmp_path / "seg.nii.gz", 2)[0], np.eye(5, 4))
    assert image_dimensions(tmp_path / "seg.nii.gz") == 2
