# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Two files in, transforms out: without a model, against a map that is known; and what `apply` does with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from scipy.ndimage import gaussian_filter, map_coordinates

from atlas_istn.errors import InputError
from atlas_istn.io.point_maps import read_point_map
from atlas_istn.shape.apply import apply
from atlas_istn.workflow.register import register

SHIFT = np.array([3.0, -2.0, 1.5])  # voxels of 2 mm


def write_shifted(folder: Path, dim: int, second: float = 1.0) -> tuple[str, str]:
    """A smooth image, and the same moved; on grids whose axes point elsewhere. Labels and points beside them."""
    shape = (30, 32, 28)[:dim]
    noise = np.random.default_rng(0).standard_normal(shape)
    middle = [np.abs(axis - (n - 1) / 2) < n / 2 - 7 for axis, n in zip(np.indices(shape), shape, strict=True)]
    values = gaussian_filter(noise, 3) * 100 + 20 * gaussian_filter(np.all(middle, axis=0).astype(float), 1)
    places = np.indices(shape) + SHIFT[:dim].reshape(-1, *[1] * dim)
    moved = map_coordinates(values, places, order=3, mode="nearest")
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    paths = []
    for name, content, turn in (("fixed", values, False), ("moving", second * moved, dim == 3)):
        image = nib.Nifti1Image(content.astype(np.float32), affine)
        labels = nib.Nifti1Image((content > 12 * second).astype(np.uint8), affine)
        for kind, volume in (("", image), ("_labels", labels)):
            # The same voxels of the world, stored in another order.
            stored = volume.as_reoriented(np.array([[1, -1], [2, 1], [0, 1]])) if turn else volume
            nib.save(stored, folder / f"{name}{kind}.nii.gz")
        paths.append(str(folder / f"{name}.nii.gz"))
    return paths[0], paths[1]


def report_of(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "out" / "fixed__moving" / "fixed__moving.json").read_text()))


def run(folder: Path, dim: int, second: float = 1.0, **options: object) -> Path:
    fixed, moving = write_shifted(folder, dim, second)
    register(fixed, moving, output_dir=str(folder / "out"), **options)  # type: ignore[arg-type]
    return folder / "out" / "fixed__moving" / "fixed__moving"


@pytest.mark.parametrize(
    ("dim", "transformation", "similarity", "second"),
    [
        (2, "rigid", "ssd", 1.0),
        (2, "affine", "mi", -1.0),
        (3, "affine", "ncc", 2.0),
        (2, "affine_velocity", "lncc", 3.0),
    ],
)
def test_a_shift_is_found_whatever_the_intensities(
    tmp_path: Path, dim: int, transformation: str, similarity: str, second: float
) -> None:
    stem = run(tmp_path, dim, second, transformation=transformation, similarity=similarity, iterations=90)
    transform = SimpleITK.ReadTransform(f"{stem}_moving_to_fixed.h5")
    # Voxel i of the fixed image is voxel i − shift of the moving one; the axes are -2 mm, 2 mm, 2 mm in RAS.
    expected = -2.0 * SHIFT[:dim] * np.array([1.0, -1.0, 1.0])[:dim]
    middle = np.array([30.0, -32.0, 28.0])[:dim]
    found = np.array(transform.TransformPoint(middle.tolist())) - middle
    np.testing.assert_allclose(found, expected, atol=0.5)


def test_labels_are_moved_and_scored(tmp_path: Path) -> None:
    files = {f"{side}_labels": str(tmp_path / f"{side}_labels.nii.gz") for side in ("fixed", "moving")}
    stem = run(tmp_path, 3, transformation="rigid", similarity="ssd", iterations=60, **files)
    scores = report_of(tmp_path)["scores"]
    assert isinstance(scores, dict)
    assert list(scores) == ["identity", "refine"]
    assert scores["refine"]["label 1"]["dice"] > 0.95 > scores["identity"]["label 1"]["dice"]
    transform = f"{stem}_moving_to_fixed.h5"
    again = str(tmp_path / "again.nii.gz")
    apply(transform, files["moving_labels"], again, grid=str(tmp_path / "fixed.nii.gz"), labels=True)
    ours = nib.load(f"{stem}_warped_labels.nii.gz").get_fdata()
    np.testing.assert_array_equal(nib.load(again).get_fdata(), ours)
    (tmp_path / "p.csv").write_text("x,y,z\n5,-6,7\n")
    apply(f"{stem}_fixed_to_moving.h5", str(tmp_path / "p.csv"), str(tmp_path / "q.csv"))
    moved = [float(value) for value in (tmp_path / "q.csv").read_text().split()[1].split(",")]
    theirs = SimpleITK.ReadTransform(f"{stem}_fixed_to_moving.h5").TransformPoint([5.0, -6.0, 7.0])
    np.testing.assert_allclose(moved, theirs, atol=1e-5)


def test_transforms_of_other_tools_move_images(tmp_path: Path) -> None:
    fixed, moving = write_shifted(tmp_path, 3)
    grid = SimpleITK.ReadImage(fixed, SimpleITK.sitkFloat32)
    spline = SimpleITK.BSplineTransformInitializer(grid, [2, 2, 2])
    spline.SetParameters(np.random.default_rng(0).normal(0, 1.5, len(spline.GetParameters())).tolist())
    turned = SimpleITK.Euler3DTransform([20.0, -20.0, 20.0], 0.1, 0.05, -0.1, [1.0, 2.0, 3.0])
    both = SimpleITK.CompositeTransform([turned, spline])
    image = SimpleITK.ReadImage(moving, SimpleITK.sitkFloat32)
    for name, transform in (("turn.tfm", turned), ("both.h5", both)):
        SimpleITK.WriteTransform(transform, str(tmp_path / name))
        apply(str(tmp_path / name), moving, str(tmp_path / "warped.nii.gz"), grid=fixed)
        theirs = SimpleITK.GetArrayFromImage(SimpleITK.Resample(image, grid, transform, SimpleITK.sitkLinear)).T
        ours = nib.load(tmp_path / "warped.nii.gz").get_fdata()
        assert (np.abs(ours - theirs) > 1e-3).mean() < 0.002  # points on the very border


def write_dicom(folder: Path, name: str, write_series: Callable[..., np.ndarray]) -> str:
    """The volume of `write_shifted` as a series, and its values as DICOM has them in its place; both are one image."""
    image = nib.as_closest_canonical(nib.load(folder / f"{name}.nii.gz"))
    voxels = (1000 + 500 * image.get_fdata()).round().astype(np.uint16)
    nib.save(nib.Nifti1Image(voxels, image.affine), folder / f"{name}.nii.gz")
    labels = nib.as_closest_canonical(nib.load(folder / f"{name}_labels.nii.gz"))
    nib.save(labels, folder / f"{name}_labels.nii.gz")
    origin = image.affine[:3, 3] * [-1, -1, 1]

    def place(index: int, tags: dict[str, Any]) -> None:
        tags["ImageOrientationPatient"] = [-1, 0, 0, 0, -1, 0]  # columns along x of RAS, rows along y
        tags["ImagePositionPatient"] = [*origin[:2].tolist(), float(origin[2] + 2 * index)]
        tags["PixelSpacing"] = [2, 2]

    write_series(folder / "series" / name, place, voxels.transpose(2, 1, 0))
    return str(folder / "series" / name)


def test_dicom_series_are_registered_as_files_are(tmp_path: Path, write_series: Callable[..., np.ndarray]) -> None:
    files = write_shifted(tmp_path, 3)
    series = [write_dicom(tmp_path, name, write_series) for name in ("fixed", "moving")]
    options = {"transformation": "rigid", "similarity": "ssd", "iterations": 60}
    stems = []
    for name, (fixed, moving) in (("files", files), ("dicom", series)):
        labels = {"moving_labels": str(tmp_path / "moving_labels.nii.gz")}
        register(fixed, moving, output_dir=str(tmp_path / name), **options, **labels)  # type: ignore[arg-type]
        stems.append(tmp_path / name / "fixed__moving" / "fixed__moving")
    assert {path.name for path in stems[0].parent.iterdir()} == {path.name for path in stems[1].parent.iterdir()}
    theirs, ours = (SimpleITK.ReadTransform(f"{stem}_moving_to_fixed.h5") for stem in stems)
    for point in ([30.0, -32.0, 28.0], [10.0, -50.0, 40.0]):
        np.testing.assert_allclose(ours.TransformPoint(point), theirs.TransformPoint(point), atol=0.02)
    # ITK reads the series and puts it where we do.
    reader = SimpleITK.ImageSeriesReader()
    volumes = []
    for folder in series:
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder))
        volumes.append(SimpleITK.Cast(reader.Execute(), SimpleITK.sitkFloat32))
    expected = SimpleITK.Resample(volumes[1], volumes[0], ours, SimpleITK.sitkLinear)
    warped = SimpleITK.Resample(
        SimpleITK.ReadImage(f"{stems[1]}_warped.nii.gz", SimpleITK.sitkFloat32), volumes[0], SimpleITK.Transform()
    )
    difference = SimpleITK.GetArrayFromImage(warped) - SimpleITK.GetArrayFromImage(expected)
    assert (np.abs(difference) > 0.5).mean() < 0.002  # points on the very border
    assert "Secret" not in (tmp_path / "dicom" / "fixed__moving" / "fixed__moving.json").read_text()


def test_mistakes_are_named(tmp_path: Path) -> None:
    fixed, moving = write_shifted(tmp_path, 2)
    (tmp_path / "empty").mkdir()
    for options, message in (
        ({"transformation": "elastic"}, "transformation: expected one of rigid, affine"),
        ({"similarity": "mse"}, "similarity: expected one of ssd"),
        ({"model": str(tmp_path)}, "configs/registration.yaml: no such file"),
        ({"fixed_labels": "none.nii.gz"}, "none.nii.gz: no such file"),
        ({"start": "middle"}, "pair_start: expected grids or world"),
        ({"fixed": str(tmp_path / "empty")}, "empty: no readable DICOM series"),
    ):
        with pytest.raises(InputError, match=message):
            register(**{"fixed": fixed, "moving": moving, "output_dir": str(tmp_path / "out"), **options})
    (tmp_path / "broken.h5").write_text("no transform")
    with pytest.raises(InputError, match=r"broken\.h5: the transform cannot be read"):
        read_point_map(tmp_path / "broken.h5")
    SimpleITK.WriteTransform(SimpleITK.Euler2DTransform(), str(tmp_path / "turn.tfm"))
    for path, to, message in (
        (moving, "x.nii.gz", "grid: missing"),
        ("p.csv", "q.fcsv", r"to: expected a \.csv file"),
    ):
        with pytest.raises(InputError, match=message):
            apply(str(tmp_path / "turn.tfm"), path, to)
