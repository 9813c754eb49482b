# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The one way of cutting planes: on volumes without any symmetry, and against the transform that maps points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from atlas_istn.io.itk_transforms import composite_transform
from atlas_istn.io.outputs import atlas_grid_affine, write_image
from atlas_istn.io.results import read_oriented
from atlas_istn.pictures.panels import draw_outlines, mark_sides, show_image
from atlas_istn.pictures.planes import atlas_coordinates, choose_planes, middle_planes

SHAPES = {2: (40, 30), 3: (20, 24, 16)}
SIDES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
"""Letter → axis of the RAS world and its sign."""


def box(dim: int) -> np.ndarray:
    labels = np.zeros(SHAPES[dim], dtype=int)
    labels[(slice(6, 15), slice(8, 20), slice(4, 12))[:dim]] = 1
    return labels


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, 1)])
def test_letters_tell_the_truth_however_a_volume_is_stored(tmp_path: Path, flips: tuple[int, ...]) -> None:
    """A ramp along one axis of the world is brighter at the edge that has the letter of its end."""
    for letter, (axis, sign) in SIDES.items():
        world = np.indices((8, 10, 12))[axis] * float(sign)
        stored = world[tuple(slice(None, None, flip) for flip in flips)]
        affine = np.diag([*np.multiply(flips, (1.0, 1.5, 2.0)), 1.0])
        write_image(stored.astype(np.float32), affine, tmp_path / "ramp.nii.gz")
        volume = read_oriented(tmp_path / "ramp.nii.gz", 3)
        for plane in middle_planes(volume.shape[1:], volume.pixdim.tolist()):
            picture = plane.cut(volume[0].numpy())
            edges = (picture[:, 0], picture[:, -1], picture[0], picture[-1])
            brightest = int(np.argmax([edge.mean() for edge in edges]))
            if letter in plane.letters:
                assert plane.letters[brightest] == letter, plane.name
            else:
                assert np.ptp(picture) == 0


def test_the_sides_are_those_that_radiologists_expect() -> None:
    letters = {plane.name: plane.letters for plane in middle_planes((4, 4, 4), (1.0, 1.0, 1.0))}
    assert letters == {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}


def test_an_image_is_shown_as_its_file_has_it() -> None:
    image = np.arange(12).reshape(4, 3)  # [x, y]
    (plane,) = choose_planes(image, (1.0, 2.0))
    np.testing.assert_array_equal(plane.cut(image), image.T)
    assert (plane.letters, plane.aspect, plane.size) == ("", 2.0, (4.0, 6.0))


def test_planes_cut_where_most_is() -> None:
    volume = np.zeros((10, 12, 14))
    volume[2:6, 3:9, 4:8] = 1
    volume[2:7, 3:9, 5] = volume[3, 3:9, 2:12] = 1
    axial, coronal, sagittal = choose_planes(volume, (1.0, 2.0, 3.0), margin=10)
    assert axial.window == ((0, 10), (0, 12), (5, 6))
    assert coronal.size == (10.0, 42.0)
    assert (sagittal.index, sagittal.aspect) == (3, 1.5)
    near = choose_planes(volume, (1.0, 2.0, 3.0), margin=0.0)
    assert near[0].window == ((2, 7), (3, 9), (5, 6))
    assert choose_planes(volume, (1.0, 2.0, 3.0), middle=True)[0].index == 6


def test_channels_are_cut_together() -> None:
    volume = np.random.default_rng(0).random((3, 5, 6, 7))
    for plane in middle_planes((5, 6, 7), (1.0, 1.0, 1.0)):
        np.testing.assert_array_equal(plane.cut(volume), [plane.cut(channel) for channel in volume])


@pytest.mark.parametrize("dim", [2, 3])
def test_coordinates_and_local_volume_are_those_of_the_transform(dim: int) -> None:
    """A stretch of 1.25 along x, of a subject with anisotropic voxels stored from left to right."""
    shape = SHAPES[dim]
    affine = np.diag([-1.0, 1.5, 2.0, 1.0]) if dim == 3 else np.diag([-1.0, -1.5, 1.0, 1.0])
    world = np.diag([1.25, *[1.0] * dim])
    world[0, dim] = 3.0
    transform = composite_transform(np.zeros((dim, *shape)), atlas_grid_affine(shape, [1.0] * dim), world, True)
    for plane in choose_planes(box(dim), np.abs(np.diag(affine)), margin=0.4):
        across, down, determinant = atlas_coordinates(transform, affine, plane)
        assert across.shape == down.shape == plane.cut(box(dim)).shape
        np.testing.assert_allclose(determinant, 1.25, atol=1e-9)
        index = np.array([bounds[0] for bounds in plane.window])
        (expected,) = transform((np.diag(affine)[:dim] * index * [-1, -1, 1][:dim])[None])
        place = (-1, -1) if plane.backwards else (0, 0)
        assert across[place] == pytest.approx(expected[plane.across], abs=1e-9)
        assert down[place] == pytest.approx(expected[plane.down], abs=1e-9)


def test_a_panel_has_the_shape_of_its_voxels_and_letters_at_its_edges() -> None:
    axes = Figure().subplots()
    plane = middle_planes((6, 8, 4), (1.0, 3.0, 2.0))[2]
    show_image(axes, plane.cut(np.random.default_rng(0).random((6, 8, 4))), plane)
    draw_outlines(axes, np.pad(np.ones((2, 3)), 1), {1: "red", 2: "blue"})
    mark_sides(axes, plane)
    assert axes.get_aspect() == pytest.approx(2 / 3)
    assert [text.get_text() for text in axes.texts] == list("APSI")
    assert len(axes.collections) == 1  # the second label is not there
