# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import gaussian_filter

from atlas_istn.topology import Signature, label_topology, march
from atlas_istn.topology.simple import is_simple


def code_of(block: np.ndarray) -> int:
    """Bits of the neighbours in a block of three voxels a side."""
    steps = [step for step in itertools.product((0, 1, 2), repeat=block.ndim) if any(s != 1 for s in step)]
    return sum(1 << k for k, step in enumerate(steps) if block[step])


def with_centre(block: np.ndarray, value: bool) -> np.ndarray:
    block = block.copy()
    block[(1,) * block.ndim] = value
    return block


def test_in_2d_the_simple_neighbourhoods_are_the_116_known_ones() -> None:
    # 116 of 256 is the count for 8-connectivity that the literature on thinning gives.
    assert sum(is_simple(code, 2) for code in range(256)) == 116


@pytest.mark.parametrize("dim", [2, 3])
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_voxel_is_simple_where_no_betti_number_changes(dim: int, data: st.DataObject) -> None:
    block = data.draw(hnp.arrays(bool, (3,) * dim))
    without, with_it = (label_topology(with_centre(block, value)) for value in (False, True))
    if is_simple(code_of(block), dim):
        assert without == with_it
    elif dim == 2:  # in 2D the numbers of the block decide, but for holes that lie open at the block's border
        around = [np.pad(with_centre(block, value), 1, constant_values=True) for value in (False, True)]
        assert without != with_it or label_topology(around[0]) != label_topology(around[1])


def test_both_topological_numbers_matter_in_3d() -> None:
    plate = np.zeros((3, 3, 3), bool)
    plate[1] = True
    assert not is_simple(code_of(plate), 3)  # filling the hole of a ring
    assert not is_simple(code_of(~plate), 3)  # joining two plates
    assert not is_simple(0, 3)  # a new island
    assert not is_simple(2**26 - 1, 3)  # a new cavity
    half = np.zeros((3, 3, 3), bool)
    half[0] = True
    assert is_simple(code_of(half), 3)  # a bump on a plane


def noise(shape: tuple[int, ...], classes: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return gaussian_filter(random.random((classes, *shape)), (0, *[1.0] * len(shape)))


@pytest.mark.parametrize("seed", range(4))
def test_marching_keeps_every_shape_and_never_leaves_the_way_to_the_goal(dim: int, seed: int) -> None:
    shape = (16,) * dim if dim == 3 else (28, 28)
    scores = noise(shape, 3, seed)
    start, goal = noise(shape, 3, seed + 100).argmax(axis=0), scores.argmax(axis=0)
    signature = Signature.of(start, 3)
    moved = march(start, goal, scores, signature.shapes)
    assert not signature.violations(moved)
    assert ((moved == start) | (moved == goal)).all()
    # A third of what differs at least can move, even between two maps of noise.
    assert (moved != goal).sum() < 0.67 * (start != goal).sum()


def test_marching_reaches_a_goal_of_the_same_topology(dim: int) -> None:
    grid = np.indices((21,) * dim)
    start, goal = (
        (np.linalg.norm(grid - np.reshape(centre, (dim, *[1] * dim)), axis=0) < radius).astype(int)
        for centre, radius in (([8] * dim, 3), ([11] * dim, 7))
    )
    scores = np.stack([1.0 - goal, goal])
    assert (march(start, goal, scores, [(1,)]) == goal).all()


def test_what_would_tear_stays_where_it_scores_least() -> None:
    start = np.ones((5, 21), int)
    goal = start.copy()
    goal[:, 8:13] = 0
    score = np.where(goal == 0, 0.4, 0.9)
    score[2, 8:13] = 0.45  # of the bridge that has to stay, this row is the most likely
    moved = march(start, goal, np.stack([1 - score, score]), [(1,)])
    assert label_topology(moved).components == 1
    assert (moved != goal).sum() == 5
    assert (moved[2, 8:13] == 1).all()


def test_the_image_border_is_background() -> None:
    # Taking the corner away changes nothing; taking a middle voxel of a line along the border cuts it.
    start = np.zeros((4, 4), int)
    start[0] = 1
    goal = start.copy()
    goal[0, 1] = 0
    scores = np.stack([1.0 - goal, goal])
    assert (march(start, goal, scores, [(1,)]) == start).all()
    goal = start.copy()
    goal[0, 0] = 0
    assert (march(start, goal, scores, [(1,)]) == goal).all()
