# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from atlas_istn.errors import InputError
from atlas_istn.topology import Topology, label_topology, labelmap_topology


def _radius(shape: tuple[int, ...]) -> np.ndarray:
    """Distance of each voxel from the centre of the grid."""
    grid = np.indices(shape) - (np.array(shape).reshape(-1, *[1] * len(shape)) - 1) / 2
    return np.linalg.norm(grid, axis=0)


def _torus() -> np.ndarray:
    z, y, x = np.indices((13, 31, 31)) - np.array([6, 15, 15]).reshape(3, 1, 1, 1)
    return np.hypot(np.hypot(y, x) - 10, z) <= 3


def _letter_b() -> np.ndarray:
    letter = np.ones((15, 9), bool)
    letter[2:6, 2:7] = letter[9:13, 2:7] = False
    return letter


def _shell() -> np.ndarray:
    radius = _radius((21, 21, 21))
    return (radius <= 9) & (radius > 6)


def _pierced_shell() -> np.ndarray:
    shell = _shell()
    shell[:10, 10, 10] = False
    return shell


SHAPES = {
    "disc": (_radius((15, 15)) <= 6, (1, 0, 0)),
    "ring": ((_radius((21, 21)) <= 9) & (_radius((21, 21)) > 5), (1, 1, 0)),
    "letter B": (_letter_b(), (1, 2, 0)),
    "diagonal pixels touch": (np.eye(4, dtype=bool), (1, 0, 0)),
    "diagonal pixels enclose": (_radius((3, 3)) == 1, (1, 1, 0)),
    "ball": (_radius((15, 15, 15)) <= 6, (1, 0, 0)),
    "diagonal voxels touch": (np.ptp(np.indices((4, 4, 4)), axis=0) == 0, (1, 0, 0)),
    "torus": (_torus(), (1, 1, 0)),
    "hollow ball": (_shell(), (1, 0, 1)),
    "hollow ball with one opening": (_pierced_shell(), (1, 0, 0)),
    "two tori": (np.concatenate([_torus(), _torus()]), (2, 2, 0)),
    "full image": (np.ones((4, 4, 4), bool), (1, 0, 0)),
    "empty image": (np.zeros((4, 4, 4), bool), (0, 0, 0)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_known_shapes(name: str) -> None:
    mask, expected = SHAPES[name]
    assert label_topology(mask) == Topology(*expected)


@pytest.mark.parametrize("name", SHAPES)
def test_margin_and_axis_order_change_nothing(name: str) -> None:
    mask, expected = SHAPES[name]
    assert label_topology(np.pad(mask, 3).T) == Topology(*expected)


def test_a_hole_open_to_the_image_border_is_no_hole() -> None:
    ring = np.ones((5, 5), bool)
    ring[2, 2:] = False
    assert label_topology(ring).holes == 0


def _euler_number_by_cells(mask: np.ndarray) -> int:
    """Vertices − edges + faces − … of the union of closed voxels, which joins voxels as full connectivity does."""
    total = 0
    for merged in itertools.product((False, True), repeat=mask.ndim):
        cells = np.pad(mask, 1)
        for axis in np.flatnonzero(merged):
            lower, upper = np.delete(cells, -1, axis), np.delete(cells, 0, axis)
            cells = lower | upper
        total += (-1) ** (mask.ndim - sum(merged)) * int(cells.sum())
    return total


@pytest.mark.parametrize("dim", [2, 3])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_euler_poincare_on_random_masks(dim: int, data: st.DataObject) -> None:
    mask = data.draw(hnp.arrays(bool, hnp.array_shapes(min_dims=dim, max_dims=dim, max_side=6)))
    topology = label_topology(mask)
    assert topology.components - topology.holes + topology.cavities == _euler_number_by_cells(mask)
    assert min(topology) >= 0


def test_labelmap_topology_looks_at_each_label_alone() -> None:
    # A ring of label 2 filled by a disc of label 1: the ring keeps its hole.
    radius = _radius((21, 21))
    labelmap = np.where(radius <= 5, 1, np.where(radius <= 9, 2, 0))
    expected = {2: Topology(1, 1, 0), 1: Topology(1, 0, 0), 7: Topology(0, 0, 0)}
    assert labelmap_topology(labelmap, [2, 1, 7]) == expected


def test_wrong_dimension_is_refused() -> None:
    with pytest.raises(InputError, match="2D or 3D mask, found 4D"):
        label_topology(np.ones((1, 3, 3, 3), bool))
