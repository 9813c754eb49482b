# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Files of surfaces are read back by trimesh, which shares no code with VTK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from atlas_istn.errors import InputError
from atlas_istn.io.outputs import atlas_grid_affine
from atlas_istn.shape.surfaces import Surface, label_surface, read_surface, write_surface

RADIUS = 9.0  # mm


def soft_ball(shape: tuple[int, ...], spacing: tuple[float, ...], offset: float = 0.0) -> np.ndarray:
    """Probabilities [2, *shape] of a ball whose centre lies `offset` mm from the middle along the first axis."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    grid[0] -= offset
    inside = 1 / (1 + np.exp(np.linalg.norm(grid, axis=0) - RADIUS))
    return np.stack([1 - inside, inside])


def ball_surface() -> Surface:
    shape, spacing = (24, 30, 20), (1.0, 1.0, 1.5)
    surface = label_surface(soft_ball(shape, spacing, offset=2.0), 1, atlas_grid_affine(shape, spacing))
    assert surface is not None
    return surface


@pytest.mark.parametrize("suffix", [".stl", ".ply"])
def test_another_library_reads_a_closed_outward_ball_of_the_right_size_and_place(tmp_path: Path, suffix: str) -> None:
    write_surface(ball_surface(), tmp_path / f"ball{suffix}")
    mesh = trimesh.load(tmp_path / f"ball{suffix}")
    assert mesh.is_watertight
    # Marching cubes cut the ball's bulges: 1 % of a ball of 9 voxels.
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.01)  # negative if it pointed inwards
    np.testing.assert_allclose(mesh.center_mass, [-2, 0, 0], atol=0.02)  # 2 mm to the right is x = -2 in LPS
    assert b"SPACE=LPS" in (tmp_path / f"ball{suffix}").read_bytes()[:300]


@pytest.mark.parametrize("suffix", [".vtp", ".stl", ".ply"])
def test_what_is_written_is_read(tmp_path: Path, suffix: str) -> None:
    surface = ball_surface()
    surface = surface.moved(surface.points, height=surface.points[:, 2])
    write_surface(surface, tmp_path / f"a{suffix}")
    found = read_surface(tmp_path / f"a{suffix}")
    corners = found.points[found.triangles]
    np.testing.assert_allclose(corners, surface.points[surface.triangles], atol=1e-5)  # files are in float32
    if suffix != ".stl":  # STL has triangles without shared vertices; VTK joins those that are equal
        np.testing.assert_array_equal(found.triangles, surface.triangles)
    if suffix == ".vtp":
        np.testing.assert_allclose(found.values["height"], found.points[:, 2])


@pytest.mark.parametrize("suffix", [".stl", ".ply"])
def test_a_mesh_marked_as_ras_is_brought_to_lps(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_surface(ball_surface(), path)
    path.write_bytes(path.read_bytes().replace(b"SPACE=LPS", b"SPACE=RAS"))
    np.testing.assert_allclose(read_surface(path).points.mean(axis=0)[0], 2, atol=0.1)


def test_contours_of_a_ring_run_round_both_edges(tmp_path: Path) -> None:
    shape, spacing = (40, 40), (0.5, 0.5)
    outer, inner = soft_ball(shape, spacing)[1], 1 / (1 + np.exp(4 * (5 - np.linalg.norm(_plane(shape), axis=0))))
    ring = outer * inner
    surface = label_surface(np.stack([1 - ring, ring]), 1, atlas_grid_affine(shape, spacing))
    assert surface is not None
    write_surface(surface, tmp_path / "ring.vtp")
    found = read_surface(tmp_path / "ring.vtp")
    assert len(found.lines) == 2
    assert all(line[0] == line[-1] for line in found.lines)
    radii = sorted(np.linalg.norm(found.points[line], axis=1).mean() for line in found.lines)
    np.testing.assert_allclose(radii, [5, RADIUS], atol=0.1)
    assert not found.points[:, 2].any()
    for suffix in (".stl", ".ply"):
        with pytest.raises(InputError, match="hold no lines"):
            write_surface(surface, tmp_path / f"ring{suffix}")


def _plane(shape: tuple[int, int]) -> np.ndarray:
    axes = [(np.arange(n) - (n - 1) / 2) / 2 for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def test_surfaces_are_closed_at_the_border_and_none_where_there_is_no_label() -> None:
    full = np.stack([np.full((6, 6, 6), 0.1), np.full((6, 6, 6), 0.9)])
    surface = label_surface(full, 1, np.eye(4))
    assert surface is not None
    assert trimesh.Trimesh(surface.points, surface.triangles).is_watertight
    assert label_surface(full[::-1], 1, np.eye(4)) is None


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown format"):
        read_surface(tmp_path / "a.obj")
    with pytest.raises(InputError, match="no such file"):
        read_surface(tmp_path / "a.stl")
    (tmp_path / "folder.vtp").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        read_surface(tmp_path / "folder.vtp")


def ply(triangle: str, rows: int) -> bytes:
    """A PLY file as text, with two points of three."""
    head = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    head += "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    return "\n".join([head + "0 0 0", "1 0 0", "0 1 0", triangle][: 1 + rows]).encode()


@pytest.mark.parametrize("suffix", [".vtp", ".ply", ".stl"])
def test_damaged_files_are_refused_in_silence(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"a{suffix}"
    write_surface(ball_surface(), path)
    whole = path.read_bytes()
    damaged = [b"", b"nothing", whole[:100], whole[: len(whole) // 2], whole[: len(whole) * 9 // 10]]
    if suffix == ".ply":
        damaged += [ply("3 0 1 2", 2), ply("3 0 1 7", 3)]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"a\{suffix}: expected a surface"):
            read_surface(path)
    assert capfd.readouterr().err == ""
    if suffix == ".ply":
        path.write_bytes(ply("3 0 1 2", 3))
        assert len(read_surface(path).triangles) == 1
