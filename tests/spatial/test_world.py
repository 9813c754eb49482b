# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Worlds and homogeneous maps, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_istn.spatial.world import LPS, flip_points, homogeneous, transform_points


@pytest.mark.parametrize("dim", [2, 3])
def test_flipping_is_its_own_inverse_and_agrees_with_the_matrix(dim: int) -> None:
    points = np.random.default_rng(0).normal(size=(5, dim))
    np.testing.assert_array_equal(flip_points(points)[:, :2], -points[:, :2])
    np.testing.assert_array_equal(flip_points(flip_points(points)), points)
    np.testing.assert_array_equal(transform_points(homogeneous(LPS, dim), points), flip_points(points))


def test_maps_are_cut_and_filled_at_the_axes_and_not_at_the_translation() -> None:
    plane = np.array([[2.0, 1.0, 5.0], [0.0, 3.0, 6.0], [0.0, 0.0, 1.0]])
    space = np.array([[2.0, 1.0, 0.0, 5.0], [0.0, 3.0, 0.0, 6.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    np.testing.assert_array_equal(homogeneous(plane, 3), space)
    np.testing.assert_array_equal(homogeneous(space, 2), plane)
    np.testing.assert_array_equal(transform_points(plane, np.array([[1.0, 1.0]])), [[8.0, 9.0]])
