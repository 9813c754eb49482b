# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Meshes moved by transforms that SimpleITK wrote, against what is known of them without ITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import trimesh
from scipy.spatial.transform import Rotation

from atlas_istn.shape.apply import apply
from atlas_istn.shape.surfaces import Surface, read_surface, write_surface

CENTRE, SCALE, SHIFT = np.array([12.0, -7.0, 30.0]), 1.3, np.array([4.0, 5.0, -6.0])
ROTATION = Rotation.from_euler("z", 0.5)


def ball(radius: float, centre: np.ndarray) -> Surface:
    """A sphere of triangles."""
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=radius)
    return Surface(np.asarray(mesh.vertices) + centre, np.asarray(mesh.faces, dtype=np.int64))


@pytest.mark.parametrize(("suffix", "file"), [(".vtp", "t.tfm"), (".ply", "t.h5"), (".stl", "t.txt")])
def test_a_ball_under_a_similarity_is_a_ball(tmp_path: Path, suffix: str, file: str) -> None:
    turn = SimpleITK.VersorTransform([0, 0, 1], 0.5).GetVersor()
    similarity = SimpleITK.Similarity3DTransform(SCALE, turn, SHIFT.tolist(), CENTRE.tolist())
    SimpleITK.WriteTransform(similarity, str(tmp_path / file))
    surface = ball(9.0, CENTRE + 20)
    write_surface(surface, tmp_path / f"ball{suffix}")
    apply(str(tmp_path / file), str(tmp_path / f"ball{suffix}"), str(tmp_path / f"moved{suffix}"))
    moved = read_surface(tmp_path / f"moved{suffix}")
    expected = SCALE * ROTATION.apply(surface.points - CENTRE) + CENTRE + SHIFT
    np.testing.assert_allclose(
        moved.points[moved.triangles], expected[surface.triangles], atol=1e-4
    )  # files are in float32
    middle = SCALE * ROTATION.apply([20.0, 20.0, 20.0]) + CENTRE + SHIFT
    np.testing.assert_allclose(np.linalg.norm(moved.points - middle, axis=1), SCALE * 9.0, atol=1e-4)
    assert trimesh.load(tmp_path / f"moved{suffix}").volume > 0 if suffix != ".vtp" else True  # outward, as before


def test_a_spline_that_is_linear_in_its_inner_part_shears_a_mesh_there(tmp_path: Path) -> None:
    """Cubic B-splines give linear functions back: coefficients that are linear in the nodes' places make a shear."""
    spline = SimpleITK.BSplineTransform(3)
    spline.SetTransformDomainOrigin([-40.0, -40.0, -40.0])
    spline.SetTransformDomainPhysicalDimensions([80.0, 80.0, 80.0])
    spline.SetTransformDomainMeshSize([4, 4, 4])
    axis = -60.0 + 20.0 * np.arange(7)  # places of the nodes along y; one lies beyond the domain on either side
    coefficients = np.zeros((3, 7, 7, 7))  # component, z, y, x
    coefficients[0] = 0.2 * axis[:, None]
    spline.SetParameters(coefficients.ravel().tolist())
    SimpleITK.WriteTransform(spline, str(tmp_path / "shear.h5"))
    surface = ball(20.0, np.array([3.0, -5.0, 8.0]))
    write_surface(surface, tmp_path / "ball.vtp")
    apply(str(tmp_path / "shear.h5"), str(tmp_path / "ball.vtp"), str(tmp_path / "moved.vtp"))
    expected = surface.points + np.outer(surface.points[:, 1], [0.2, 0.0, 0.0])
    np.testing.assert_allclose(read_surface(tmp_path / "moved.vtp").points, expected, atol=1e-4)


def test_a_displacement_field_moves_the_lines_of_a_2d_image(tmp_path: Path) -> None:
    """Linear interpolation keeps what is linear: the field ``u = 0.1 x`` stretches along x, and z stays."""
    field = np.zeros((41, 61, 2))
    field[..., 0] = 0.1 * (2.0 * np.arange(61) - 60.0)
    image = SimpleITK.GetImageFromArray(field, isVector=True)
    image.SetSpacing([2.0, 2.0])
    image.SetOrigin([-60.0, -40.0])
    SimpleITK.WriteTransform(SimpleITK.DisplacementFieldTransform(image), str(tmp_path / "stretch.h5"))
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    circle = np.stack([15 * np.cos(angles), 15 * np.sin(angles), 0 * angles], axis=1)
    write_surface(Surface(circle, lines=(np.r_[0:90, 0],)), tmp_path / "circle.vtp")
    apply(str(tmp_path / "stretch.h5"), str(tmp_path / "circle.vtp"), str(tmp_path / "ellipse.vtp"))
    np.testing.assert_allclose(read_surface(tmp_path / "ellipse.vtp").points, circle * [1.1, 1, 1], atol=1e-4)
