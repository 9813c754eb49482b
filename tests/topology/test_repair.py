# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from atlas_istn.topology import Signature, Topology, pull_argmax, repair_labelmap, restore_labelmap


def soft(labelmap: np.ndarray, sigma: float = 0.7) -> np.ndarray:
    """Channels of a labelmap, soft at its borders."""
    channels = np.stack([labelmap == label for label in range(int(labelmap.max()) + 1)]).astype(np.float32)
    return gaussian_filter(channels, (0, *[sigma] * labelmap.ndim))


def set_label(scores: np.ndarray, region: tuple, label: int, value: float) -> None:
    """Give a label a score in a region, and the others what is left in equal parts of what they had."""
    others = [other for other in range(len(scores)) if other != label]
    rest = scores[(others, *region)] if len(others) == 1 else scores[others][(slice(None), *region)]
    share = np.where(rest.sum(axis=0) > 0, rest / np.maximum(rest.sum(axis=0), 1e-6), 1 / len(others))
    scores[(label, *region)] = value
    for other, part in zip(others, share, strict=True):
        scores[(other, *region)] = (1 - value) * part


def letter(dim: int) -> np.ndarray:
    """A letter B; in 3D a plate, so that its holes are handles."""
    plane = np.zeros((30, 22), int)
    plane[3:27, 4:18] = 1
    plane[7:13, 8:14] = plane[17:23, 8:14] = 0
    return plane if dim == 2 else np.pad(np.stack([plane] * 4, axis=-1), [(0, 0), (0, 0), (3, 3)])


def plane_of(dim: int, *region: slice) -> tuple:
    """A region of the plane, through the whole depth in 3D."""
    return region if dim == 2 else (*region, slice(None))


DAMAGE = {
    # name: region, label and score that it is given there
    "island": ((slice(0, 2), slice(0, 2)), 1, 0.7),
    "pinhole": ((slice(14, 15), slice(6, 7)), 1, 0.3),
    "cut stroke": ((slice(9, 11), slice(3, 9)), 1, 0.35),
    "filled hole": ((slice(16, 24), slice(7, 15)), 1, 0.6),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_repaired_with_few_voxels(dim: int, name: str) -> None:
    region, label, value = DAMAGE[name]
    truth = letter(dim)
    target = Signature.of(truth, 2)
    scores = soft(truth)
    intact = scores.argmax(axis=0)
    set_label(scores, plane_of(dim, *region), label, value)
    if name == "filled hole":  # a faint dip remains where the hole was: that is where it has to open
        set_label(scores, plane_of(dim, slice(19, 21), slice(10, 12)), 1, 0.52)
    damaged = scores.argmax(axis=0)
    assert target.violations(damaged)
    repaired = repair_labelmap(scores, target)
    assert not target.violations(repaired)
    assert (repaired != damaged).sum() <= (damaged != intact).sum()  # never more than undoing the damage would take
    if name == "island":
        assert (repaired == intact).all()
    if name == "filled hole":
        # The hole that opens is the dip and no larger.
        assert (repaired != damaged).sum() <= (4 if dim == 2 else 4 * damaged.shape[-1])


def test_damage_in_several_places_is_repaired_at_once(dim: int) -> None:
    truth = letter(dim)
    target = Signature.of(truth, 2)
    scores = soft(truth)
    for region, label, value in DAMAGE.values():
        set_label(scores, plane_of(dim, *region), label, value)
    set_label(scores, plane_of(dim, slice(19, 21), slice(10, 12)), 1, 0.52)
    restored = restore_labelmap(scores, target)
    assert (restored.note.step, restored.note.kept) == ("correction", True)
    assert not target.violations(restored.labelmap)
    assert restored.note.voxels_changed == (restored.labelmap != scores.argmax(axis=0)).sum()


def shell(dim: int, size: int = 17) -> np.ndarray:
    grid = np.indices((size,) * dim) - (size - 1) / 2
    radius = np.linalg.norm(grid, axis=0)
    return np.where(radius <= 3.2, 1, np.where(radius <= 5.3, 2, 0))


def test_a_shell_that_is_open_is_closed_around_its_core(dim: int) -> None:
    truth = shell(dim)
    target = Signature.of(truth, 3)
    scores = soft(truth, 0.5)
    middle = slice(8, 9)
    set_label(scores, (*[middle] * (dim - 1), slice(11, 17)), 0, 0.55)
    damaged = scores.argmax(axis=0)
    assert set(target.violations(damaged)) == {(2,)}
    repaired = repair_labelmap(scores, target)
    assert not target.violations(repaired)
    assert (repaired != damaged).sum() <= 3


def chambers(dim: int) -> np.ndarray:
    """A wall of label 1 around two chambers, 2 and 3, with a septum between them."""
    shape = (21, 15) if dim == 2 else (21, 15, 9)
    labelmap = np.zeros(shape, int)
    labelmap[(slice(2, 19), slice(2, 13), slice(1, 8))[:dim]] = 1
    labelmap[(slice(4, 10), slice(4, 11), slice(3, 6))[:dim]] = 2
    labelmap[(slice(11, 17), slice(4, 11), slice(3, 6))[:dim]] = 3
    return labelmap


def test_two_labels_that_must_not_touch_are_parted(dim: int) -> None:
    truth = chambers(dim)
    target = Signature.of(truth, 4)
    assert (2, 3) not in target.adjacent
    scores = soft(truth, 0.5)
    for place in (5, 8):  # the septum has two holes, through which the chambers touch
        set_label(scores, (slice(10, 11), slice(place, place + 1), slice(4, 5))[:dim], 2, 0.5)
    damaged = scores.argmax(axis=0)
    assert (2, 3) in Signature.of(damaged, 4).adjacent
    restored = restore_labelmap(scores, target)
    assert restored.note.kept
    assert Signature.of(restored.labelmap, 4).adjacent == target.adjacent
    assert (restored.labelmap != damaged).sum() <= 2  # the holes are filled, and nothing else changes


def test_where_only_the_contact_is_wrong_it_is_mended_and_nothing_else(dim: int) -> None:
    # Two bars end to end. Every label is as it should be; they touch and should not, or the other way round.
    apart = np.zeros((24, *(7,) * (dim - 1)), int)
    middle = (slice(2, 5),) * (dim - 1)
    apart[(slice(2, 10), *middle)], apart[(slice(12, 22), *middle)] = 1, 2
    touching = apart.copy()
    touching[(slice(10, 12), *middle)] = 1
    for start, other in ((apart, touching), (touching, apart)):
        wanted = Signature({(1,): Topology(1, 0, 0), (2,): Topology(1, 0, 0)}, Signature.of(other, 3).adjacent)
        scores = soft(start, 0.8)
        restored = restore_labelmap(scores, wanted)
        assert restored.note.kept
        assert not wanted.violations(restored.labelmap)
        # A layer between them where they touch, a bridge of two voxels where they do not.
        assert restored.note.voxels_changed <= (3 ** (dim - 1) if start is touching else 2)


def test_a_right_labelmap_is_left_alone(dim: int) -> None:
    scores = soft(letter(dim))
    plain = scores.argmax(axis=0)
    restored = restore_labelmap(scores, Signature.of(plain, 2))
    assert (restored.note.step, restored.note.voxels_changed, restored.note.kept) == ("none", 0, True)
    assert (restored.labelmap == plain).all()


def test_the_vote_of_a_finer_grid_is_tried_first() -> None:
    # Two voxels of 0.51 touch at a corner. Between them the label is below 0.5, so the finer grid has more of the
    # background in each of them, and the isolated pair goes.
    truth = np.zeros((12, 12), int)
    truth[2:8, 2:8] = 1
    scores = np.stack([1.0 - truth, truth]).astype(np.float32)
    scores[:, 10, 10] = 0.49, 0.51
    restored = restore_labelmap(scores, Signature.of(truth, 2))
    assert (restored.note.step, restored.note.kept, restored.note.voxels_changed) == ("supersample", True, 1)
    assert (restored.labelmap == truth).all()


def test_what_cannot_be_reached_is_said() -> None:
    # Two holes need five voxels in a row: there are three.
    target = Signature.of(letter(2), 2)
    scores = np.random.default_rng(0).random((2, 3, 3)).astype(np.float32)
    restored = restore_labelmap(scores, target)
    assert not restored.note.kept
    assert target.violations(restored.labelmap)


def test_an_empty_result_is_given_back(dim: int) -> None:
    scores = np.stack([np.ones((8,) * dim), np.zeros((8,) * dim)]).astype(np.float32)
    disc = np.zeros((8,) * dim, int)
    disc[(slice(2, 5),) * dim] = 1
    restored = restore_labelmap(scores, Signature.of(disc, 2))
    assert not restored.note.kept
    assert not restored.labelmap.any()


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_argmax_is_pulled_by_the_least_change(classes: int) -> None:
    random = np.random.default_rng(classes)
    scores = random.dirichlet(np.ones(classes), 200).T.reshape(classes, 10, 20)
    labelmap = random.integers(0, classes, (10, 20))
    same = scores.argmax(axis=0) == labelmap
    pulled = pull_argmax(scores, labelmap)
    assert (pulled.argmax(axis=0) == labelmap).all()
    np.testing.assert_array_equal(pulled[:, same], scores[:, same])
    np.testing.assert_allclose(pulled.sum(axis=0), scores.sum(axis=0), atol=1e-12)
    # Without a margin it is the projection on the channels whose argmax may be the label: no sampled point is nearer.
    pulled = pull_argmax(scores, labelmap, margin=0.0)
    distance = np.square(pulled - scores).sum(axis=0)
    for _ in range(300):
        other = random.dirichlet(np.ones(classes), 200).T.reshape(classes, 10, 20)
        other = 0.9 * pulled + 0.1 * other  # near the optimum, where a better one would lie
        own = np.take_along_axis(other, labelmap[None], axis=0)[0]
        allowed = own >= other.max(axis=0)
        assert (np.square(other - scores).sum(axis=0)[allowed] >= distance[allowed] - 1e-12).all()
