# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Labels at a face of the model's grid."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_istn.workflow.faces import cut_faces

SPACING = (1.0, 2.0, 3.0)
GRID = np.diag([*SPACING, 1.0])


def labels(*faces: tuple[slice | int, ...]) -> np.ndarray:
    found = np.zeros((8, 8, 8), dtype=int)
    found[3:5, 3:5, 3:5] = 1
    for face in faces:
        found[face] = 1
    return found


def image(margin: int, flip: bool = False) -> tuple[tuple[int, ...], np.ndarray]:
    """An image with a margin of voxels around the grid, perhaps stored from right to left."""
    affine = GRID.copy()
    affine[:3, 3] = -margin * np.array(SPACING)
    shape = (8 + 2 * margin,) * 3
    if flip:
        affine[0, 3] += (shape[0] - 1) * affine[0, 0]
        affine[0, 0] *= -1
    return shape, affine


@pytest.mark.parametrize("flip", [False, True])
def test_a_face_is_named_with_its_area_where_the_image_goes_on(flip: bool) -> None:
    touching = labels((0, slice(2, 5), slice(2, 4)))
    (face,) = cut_faces(touching, GRID, *image(3, flip), SPACING)
    assert (face.side, face.area) == ("left", 3 * 2 * 2.0 * 3.0)
    top = labels((slice(2, 4), 4, 7))
    assert [face.side for face in cut_faces(top, GRID, *image(3, flip), SPACING)] == ["superior"]


def test_nothing_is_cut_inside_or_at_the_border_of_the_image() -> None:
    assert not cut_faces(labels(), GRID, *image(3), SPACING)
    assert not cut_faces(labels((0, 4, 4)), GRID, *image(0), SPACING)
