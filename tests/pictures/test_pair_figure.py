# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What the picture of a pair shows, for maps that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atlas_istn.pictures.pair_figure import pair_figure
from atlas_istn.spatial import DisplacementField, Transform

TILES, HEIGHT, GAP, TITLE = 7, 180, 4, 20


def drawn(dim: int, slope: float = 0.0) -> list[np.ndarray]:
    """The tiles of the first row, of equal images that a stretch by 1 + slope along the first axis moves."""
    shape = (24, 24, 24)[:dim]
    image = torch.from_numpy(np.random.default_rng(0).random(shape)).float()[None, None]
    field = torch.zeros(1, dim, *shape)
    field[0, 0] = slope * torch.arange(24.0).reshape(-1, *[1] * (dim - 1))
    transform = Transform(field, torch.eye(dim, dim + 1)[None], shape, (1.0,) * dim, DisplacementField())
    picture = np.asarray(pair_figure(image, image, transform)).astype(int)
    assert picture.shape == (TITLE + (HEIGHT + GAP) * (1 if dim == 2 else 3) - GAP, TILES * (HEIGHT + GAP) - GAP, 3)
    starts = [(HEIGHT + GAP) * number for number in range(TILES)]
    return [picture[TITLE : TITLE + HEIGHT, start : start + HEIGHT] for start in starts]


def test_the_identity_leaves_no_difference_and_all_of_the_grid_straight(dim: int) -> None:
    fixed, warped, checkerboard, before, after, grid, jacobian = drawn(dim)
    np.testing.assert_array_equal(fixed, warped)
    np.testing.assert_array_equal(fixed, checkerboard)
    assert before.max() == after.max() == 0
    dark = grid[..., 0] < 100
    assert set(np.unique(dark.all(axis=0) | dark[~dark.all(axis=1)].any(axis=0))) == {False, True}
    assert dark.all(axis=0).sum() == dark.all(axis=1).sum() == 15  # 16 cells along each side
    assert (jacobian == 255).all()


@pytest.mark.parametrize(("slope", "colour"), [(1.0, [178, 24, 43]), (-0.5, [33, 102, 172]), (-1.5, [255, 0, 255])])
def test_volume_change_has_its_colours(slope: float, colour: list[int]) -> None:
    np.testing.assert_array_equal(drawn(2, slope)[-1][90, 90], colour)
