# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The files are read by SimpleITK and compared with an evaluation in numpy and scipy that knows nothing of ITK."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import affine_transform, gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from atlas_istn.errors import InputError
from atlas_istn.io.itk_transforms import AffineMap, composite_transform, read_transform, write_transform

sitk = pytest.importorskip("SimpleITK")

SHAPES = {2: (19, 24), 3: (13, 17, 11)}
# Displacements are stored with the relative accuracy of float32: 1e-7 of at most 30 mm here, plus rounding.
MM = 1e-4


def oblique(dim: int, seed: int) -> np.ndarray:
    """Voxel to RAS affine: rotated, anisotropic, left-handed, shifted."""
    rotation = Rotation.from_euler("xyz", [0.3, -0.2, 0.5]).as_matrix()
    if dim == 2:
        rotation = Rotation.from_euler("z", 0.5).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-0.8, 1.3, 2.5])
    affine[:3, 3] = np.random.default_rng(seed).uniform(-40, 40, 3)
    if dim == 2:
        affine[2] = affine[:, 2] = (0, 0, 1, 0)
    return affine


def world_map(dim: int) -> np.ndarray:
    """A rotation, scaling and shift of RAS points."""
    result = np.eye(dim + 1)
    rotation = Rotation.from_euler("zyx", [0.2, 0.1 * (dim - 2), -0.15 * (dim - 2)]).as_matrix()
    result[:dim, :dim] = rotation[:dim, :dim] @ np.diag([1.1, 0.9, 1.05][:dim])
    result[:dim, dim] = [3.0, -5.0, 2.0][:dim]
    return result


def smooth_field(dim: int, amplitude: float = 3.0) -> np.ndarray:
    noise = np.random.default_rng(dim).normal(size=(dim, *SHAPES[dim]))
    field = np.stack([gaussian_filter(component, 2.5) for component in noise])
    return amplitude * field / np.abs(field).max()


def cut(affine: np.ndarray, dim: int) -> np.ndarray:
    """The map of the first axes as [dim + 1, dim + 1]."""
    keep = [*range(dim), len(affine) - 1]
    return affine[np.ix_(keep, keep)]


def apply(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ affine[:-1, :-1].T + affine[:-1, -1]


def expected(points, field, grid, world, affine_first):
    """Our own meaning of the map, for RAS points [N, dim]."""

    def displace(world_points):
        voxels = apply(np.linalg.inv(grid), world_points)
        moved = voxels + np.stack([map_coordinates(u, voxels.T, order=1, mode="nearest") for u in field], axis=1)
        return apply(grid, moved)

    return displace(apply(world, points)) if affine_first else apply(world, displace(points))


def lps(points: np.ndarray) -> np.ndarray:
    return points * ([-1, -1, 1][: points.shape[-1]])


def sample_points(dim, grid, world, affine_first):
    """RAS points for which the displacement is looked up inside the grid, on its border and up to 3 voxels beyond."""
    voxels = np.random.default_rng(5).uniform(-3, np.array(SHAPES[dim]) + 2, (300, dim))
    points = apply(grid, voxels)
    return apply(np.linalg.inv(world), points) if affine_first else points


@pytest.mark.parametrize("affine_first", [True, False])
@pytest.mark.parametrize("dim", [2, 3])
def test_points_map_as_in_numpy(tmp_path, dim, affine_first):
    field, grid4, world = smooth_field(dim), oblique(dim, 1), world_map(dim)
    write_transform(composite_transform(field, grid4, world, affine_first), tmp_path / "map.h5")
    transform = sitk.ReadTransform(str(tmp_path / "map.h5"))
    grid = cut(grid4, dim)

    points = sample_points(dim, grid, world, affine_first)
    found = np.array([transform.TransformPoint(point.tolist()) for point in lps(points)])

    np.testing.assert_allclose(lps(found), expected(points, field, grid, world, affine_first), atol=MM)


@pytest.mark.parametrize("affine_first", [True, False])
@pytest.mark.parametrize("dim", [2, 3])
def test_itk_simpleitk_and_we_read_the_same_map(tmp_path, dim, affine_first):
    """Points inside, in the margin and far away, where the displacement ends."""
    itk = pytest.importorskip("itk")
    path = str(tmp_path / "map.h5")
    written = composite_transform(smooth_field(dim), oblique(dim, 1), world_map(dim), affine_first)
    write_transform(written, path)
    read = read_transform(path)
    assert [part.kind for part in read.parts] == [part.kind for part in written.parts]

    voxels = np.random.default_rng(5).uniform(-12, np.array(SHAPES[dim]) + 12, (300, dim))
    points = lps(apply(cut(oblique(dim, 1), dim), voxels))
    found = read(points)
    np.testing.assert_allclose(found, written(points), atol=1e-12)
    affine = next(part for part in read.parts if isinstance(part, AffineMap))
    bent = np.linalg.norm(found - affine(points), axis=1) > 1e-9
    assert 0.1 < bent.mean() < 0.9
    for transform in (sitk.ReadTransform(path), itk.transformread(path)[0]):
        theirs = np.array([list(transform.TransformPoint(point.tolist())) for point in points])
        np.testing.assert_allclose(found, theirs, atol=1e-9)


@pytest.mark.parametrize("dim", [2, 3])
def test_files_of_itk_are_read(tmp_path, dim):
    """Several affine maps about centres and a field, as ITK itself writes them, in double precision."""
    rng = np.random.default_rng(dim)
    affines = [sitk.AffineTransform(dim) for _ in range(2)]
    for affine in affines:
        affine.SetMatrix((np.eye(dim) + 0.1 * rng.normal(size=(dim, dim))).ravel().tolist())
        affine.SetTranslation(rng.normal(size=dim).tolist())
        affine.SetCenter(rng.normal(size=dim).tolist())
    image = sitk_image(np.zeros(SHAPES[dim]), cut(oblique(dim, 1), dim))
    vectors = sitk.GetImageFromArray(smooth_field(dim).T, isVector=True)
    vectors.CopyInformation(image)
    field = sitk.DisplacementFieldTransform(sitk.Cast(vectors, sitk.sitkVectorFloat64))
    points = lps(apply(cut(oblique(dim, 1), dim), rng.uniform(-3, np.array(SHAPES[dim]) + 3, (200, dim))))
    for number, theirs in enumerate((sitk.CompositeTransform([affines[0], field, affines[1]]), field, affines[0])):
        path = str(tmp_path / f"{number}.h5")
        sitk.WriteTransform(theirs, path)
        expected = [theirs.TransformPoint(point.tolist()) for point in points]
        np.testing.assert_allclose(read_transform(path)(points), expected, atol=1e-9)


def test_other_transforms_and_damaged_files_are_refused(tmp_path, capfd):
    path = tmp_path / "map.h5"
    with pytest.raises(InputError, match=r"map\.h5: the transform cannot be read \(FileNotFoundError\)"):
        read_transform(path)
    sitk.WriteTransform(sitk.BSplineTransform(2), str(path))
    with pytest.raises(InputError, match=r"map\.h5: .*BSplineTransform_double_2_2.* Expected AffineTransform and"):
        read_transform(path)
    write_transform(composite_transform(np.zeros((2, 20, 20)), np.eye(4), np.eye(3), True), path)
    content = path.read_bytes()
    for damaged in (b"", content[:2000], content[:900] + bytes(900) + content[1800:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"map\.h5: the transform cannot be read.*Run inference again"):
            read_transform(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("dim", [2, 3])
def test_identity(tmp_path, dim):
    write_transform(
        composite_transform(np.zeros((dim, *SHAPES[dim])), oblique(dim, 1), np.eye(dim + 1), True), tmp_path / "map.h5"
    )
    transform = sitk.ReadTransform(str(tmp_path / "map.h5"))
    for point in np.random.default_rng(0).uniform(-100, 100, (20, dim)):
        np.testing.assert_allclose(transform.TransformPoint(point.tolist()), point, atol=1e-10)


@pytest.mark.parametrize("dim", [2, 3])
def test_resampling_the_atlas_as_in_scipy(tmp_path, dim):
    """An atlas image on an oblique grid, resampled onto another oblique grid through the file."""
    field, world = smooth_field(dim), world_map(dim)
    atlas4 = oblique(dim, 1)
    write_transform(composite_transform(field, atlas4, world, True), tmp_path / "atlas_to_subject.h5")
    atlas_image = gaussian_filter(np.random.default_rng(3).normal(size=SHAPES[dim]), 1.0)
    subject_shape = tuple(size + 3 for size in SHAPES[dim])
    atlas, subject = cut(atlas4, dim), cut(atlas4 @ np.diag([1.1, 0.9, 0.8, 1.0]), dim)
    centre = apply(np.linalg.inv(world), apply(atlas, np.array(SHAPES[dim]) / 2))
    subject[:dim, dim] += centre - apply(subject, np.array(subject_shape) / 2)

    resampled = sitk.Resample(
        sitk_image(atlas_image, atlas),
        sitk_image(np.zeros(subject_shape), subject),
        sitk.ReadTransform(str(tmp_path / "atlas_to_subject.h5")),
        sitk.sitkLinear,
        0.0,
    )

    points = apply(subject, np.indices(subject_shape).reshape(dim, -1).T)
    voxels = apply(np.linalg.inv(atlas), expected(points, field, atlas, world, True)).T
    ours = map_coordinates(atlas_image, voxels, order=1, mode="nearest").reshape(subject_shape)
    # ITK fills points outside the atlas image with 0, so only points inside are compared.
    inside = ((voxels >= 0) & (voxels <= np.array(SHAPES[dim])[:, None] - 1)).all(axis=0).reshape(subject_shape)
    assert inside.mean() > 0.3
    np.testing.assert_allclose(sitk.GetArrayFromImage(resampled).T[inside], ours[inside], atol=1e-4)


def sitk_image(array: np.ndarray, affine: np.ndarray):
    dim = array.ndim
    matrix, origin = affine[:dim, :dim] * np.array([-1, -1, 1])[:dim, None], lps(affine[:dim, dim])
    spacing = np.linalg.norm(matrix, axis=0)
    image = sitk.GetImageFromArray(array.T)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((matrix / spacing).ravel().tolist())
    image.SetOrigin(origin.tolist())
    return image


def test_scipy_affine_agrees_for_a_pure_affine(tmp_path):
    """Direction of the map: a file that moves points by +2 voxels in x resamples like scipy's output-to-input map."""
    world = np.eye(3)
    world[0, 2] = 2.0
    write_transform(composite_transform(np.zeros((2, 8, 9)), np.eye(4), world, True), tmp_path / "map.h5")
    image = np.random.default_rng(0).normal(size=(8, 9))
    found = sitk.Resample(sitk_image(image, np.eye(3)), sitk.ReadTransform(str(tmp_path / "map.h5")))
    scipys = affine_transform(image, np.eye(2), offset=[2, 0], order=1, mode="constant")
    np.testing.assert_allclose(sitk.GetArrayFromImage(found).T, scipys, atol=1e-12)


def test_2d_affines_may_be_3x3_or_4x4(tmp_path):
    field, grid, world = smooth_field(2), oblique(2, 1), world_map(2)
    points = []
    for affine in (grid, cut(grid, 2)):
        transform = composite_transform(field, affine, world, True)
        points.append(transform(np.array([[4.0, -7.0]])))
    np.testing.assert_array_equal(*points)


def test_file_is_smaller_than_its_single_precision_numbers(tmp_path):
    shape = (24, 26, 22)
    noise = np.random.default_rng(0).normal(size=(3, *shape))
    field = np.stack([gaussian_filter(component, 4) for component in noise])
    field *= 0.9 / np.linalg.norm(field, axis=0).max()
    write_transform(composite_transform(field, oblique(3, 1), np.eye(4), True), tmp_path / "map.h5")
    singles = 3 * 4 * np.prod(np.array(shape) + 4)  # a margin of two voxels on either side
    assert (tmp_path / "map.h5").stat().st_size < 0.9 * singles


def test_unwritable_folder(tmp_path):
    transform = composite_transform(np.zeros((2, 4, 4)), np.eye(4), np.eye(3), True)
    (tmp_path / "file").write_text("text")
    with pytest.raises(InputError, match=r"map\.h5: cannot be written.*Choose another path"):
        write_transform(transform, tmp_path / "file" / "map.h5")


def test_nothing_but_the_file_is_left(tmp_path):
    transform = composite_transform(np.zeros((2, 4, 4)), np.eye(4), np.eye(3), True)
    for _ in range(2):  # the second time replaces the file
        write_transform(transform, tmp_path / "map.h5")
    assert [entry.name for entry in tmp_path.iterdir()] == ["map.h5"]


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 4, 4, 4), (1, 4)])
def test_shapes_must_fit(shape):
    with pytest.raises(ValueError, match="displacement must be"):
        composite_transform(np.zeros(shape), np.eye(4), np.eye(4), True)


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"suffix \.h5"):
        write_transform(None, tmp_path / "map.tfm")
