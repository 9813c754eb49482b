# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
from __future__ import annotations

import numpy as np
import pytest

from atlas_istn.errors import InputError
from atlas_istn.topology import Signature, Topology


def shell(size: int = 21, dim: int = 2) -> np.ndarray:
    """A core of label 1 inside a shell of label 2."""
    grid = np.indices((size,) * dim) - (size - 1) / 2
    radius = np.linalg.norm(grid, axis=0)
    return np.where(radius <= 4, 1, np.where(radius <= 7, 2, 0))


def test_labels_and_the_unions_of_those_that_touch_are_measured(dim: int) -> None:
    signature = Signature.of(shell(dim=dim), 3)
    hollow = Topology(1, 1, 0) if dim == 2 else Topology(1, 0, 1)
    assert signature.shapes == {(1,): Topology(1, 0, 0), (2,): hollow, (1, 2): Topology(1, 0, 0)}
    assert signature.adjacent == {(1, 2)}


def test_labels_that_touch_at_a_corner_only_are_adjacent_and_others_are_not(dim: int) -> None:
    labelmap = np.zeros((9,) * dim, int)
    labelmap[(2,) * dim], labelmap[(3,) * dim], labelmap[(6,) * dim] = 3, 1, 2
    signature = Signature.of(labelmap, 4)
    assert signature.adjacent == {(1, 3)}
    assert list(signature.shapes) == [(1,), (2,), (3,), (1, 3), (1, 2, 3)]
    assert signature.shapes[1, 2, 3].components == 2


def test_an_empty_labelmap_has_a_signature(dim: int) -> None:
    signature = Signature.of(np.zeros((5,) * dim, int), 2)
    assert signature.shapes == {(1,): Topology(0, 0, 0)}
    assert not signature.defects(np.zeros((5,) * dim, int))


def test_defects_are_counted_over_all_shapes() -> None:
    labelmap = shell()
    target = Signature.of(labelmap, 3)
    assert target.defects(labelmap) == 0
    island, opened = labelmap.copy(), labelmap.copy()
    island[0, 0] = 2  # a second component of label 2 and of the foreground
    assert target.violations(island) == {(2,): Topology(2, 1, 0), (1, 2): Topology(2, 0, 0)}
    assert target.defects(island) == 2
    opened[10, 14:] = 0  # label 2 is no ring any more, the foreground is still a disc
    assert target.violations(opened) == {(2,): Topology(1, 0, 0)}


def test_a_contact_is_a_defect_where_no_shape_tells_it(dim: int) -> None:
    apart = np.zeros((9,) * dim, int)
    apart[(slice(1, 3),) * dim], apart[(slice(5, 7),) * dim], apart[(slice(7, 8),) * dim] = 1, 2, 3
    touching = apart.copy()
    touching[(slice(3, 5),) * dim] = 1
    target = Signature.of(apart, 4)
    # The whole foreground has a component less too.
    assert target.violations(touching) == {(1, 2, 3): Topology(1, 0, 0), (1, 2): Topology(1, 0, 0)}
    assert target.defects(touching) == 2
    wanted = Signature.of(apart, 4).declare({"adjacent": [[1, 2], [2, 3]]}, 4)
    assert wanted.violations(apart) == {(1, 2): Topology(2, 0, 0)}
    assert set(target.unions) == {(1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)}


def test_the_majority_decides_shape_by_shape() -> None:
    whole, cut, apart = shell(), shell(), shell()
    cut[10, 14:] = 0
    apart[apart == 1] = 0
    apart[0, 0] = 1
    target = Signature.majority([Signature.of(labelmap, 3) for labelmap in (whole, cut, whole, apart, whole)])
    assert target == Signature.of(whole, 3)
    # Where the pair touches in a minority, it is not looked at, but the whole foreground (here the same) is.
    few = Signature.majority([Signature.of(labelmap, 3) for labelmap in (apart, apart, whole)])
    assert not few.adjacent
    assert few.shapes[1, 2] == Topology(2, 1, 0)


def test_where_there_is_no_majority_nothing_is_said(dim: int) -> None:
    labelmaps = []
    for holes in range(3):  # the shell leaks in none, one and two places
        labelmaps.append(shell(dim=dim))
        for side in range(holes):
            labelmaps[-1][(*[10] * (dim - 1), slice(14, None) if side else slice(None, 7))] = 0
    most = Signature.majority([Signature.of(labelmap, 3) for labelmap in labelmaps])
    assert (2,) not in most.shapes
    assert most.shapes[(1,)] == Topology(1, 0, 0)
    own = Signature.of(labelmaps[0], 3)
    assert most.over(own).shapes[(2,)] == own.shapes[(2,)]


def test_a_declaration_takes_precedence() -> None:
    own = Signature.of(shell(), 3)
    declared = own.declare({2: [1, 0, 0], "1+2": [1, 1, 0], "adjacent": []}, 3)
    assert declared.shapes == {(1,): Topology(1, 0, 0), (2,): Topology(1, 0, 0), (1, 2): Topology(1, 1, 0)}
    assert not declared.adjacent
    assert own.declare({}, 3) == own
    # A pair that shall not touch cannot have the shape of one that does.
    assert (1, 2) not in own.declare({"adjacent": []}, 3).shapes


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({1: [1, 0]}, r"expected 1: \[components, holes, cavities\]"),
        ({1: 1}, "three whole numbers, found 1"),
        ({1: [1, -1, 0]}, "three whole numbers"),
        ({3: [1, 0, 0]}, r"expected labels from 1 to 2, found \[3\]"),
        ({"B": [1, 0, 0]}, "expected labels, such as 1 or"),
        ({"adjacent": [[0, 1]]}, r"from 1 to 2, found \[0, 1\]"),
        ({"adjacent": [[1]]}, "adjacent: expected pairs"),
        ({"adjacent": 1}, "adjacent: expected pairs"),
    ],
)
def test_a_declaration_without_meaning_is_refused(declared: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Signature.of(shell(), 3).declare(declared, 3)


def test_the_description_has_the_names() -> None:
    described = Signature.of(shell(), 3).describe({1: "core", 2: "shell"})
    assert described == {
        "shapes": {"core": [1, 0, 0], "shell": [1, 1, 0], "core+shell": [1, 0, 0]},
        "adjacent": ["core+shell"],
    }
