# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Inverse consistency where its value is known, and maps between subjects whose transforms are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from atlas_istn.spatial import Transform, VelocityField, identity_grid
from atlas_istn.spatial.consistency import inverse_consistency, map_points, map_subject, subject_to_subject

SHAPES = {2: (40, 36), 3: (28, 24, 26)}
Fields = Callable[..., torch.Tensor]


def transform(dim: int, velocity: torch.Tensor | None = None, shift: float = 0.0, squarings: int = 6) -> Transform:
    """A transform whose affine part is a shift of the first axis in voxels."""
    shape = SHAPES[dim]
    if velocity is None:
        velocity = torch.zeros(1, dim, *(n // 2 for n in shape))
    affine = torch.eye(dim, dim + 1).repeat(len(velocity), 1, 1)
    affine[:, 0, dim] = shift
    return Transform(velocity.float(), affine, shape, (1.0,) * dim, VelocityField(squarings))


def smooth(dim: int, fields: Fields, amplitude: float = 2.0, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return fields(tuple(n // 2 for n in SHAPES[dim]), amplitude, sigma=3.0, seed=seed, batch=batch)


def two_boxes(dim: int) -> torch.Tensor:
    """One-hot labelmap of the background and two boxes that touch."""
    labels = torch.zeros(SHAPES[dim], dtype=torch.long)
    labels[(slice(8, 14), *[slice(8, 18)] * (dim - 1))] = 1
    labels[(slice(14, 20), *[slice(8, 18)] * (dim - 1))] = 2
    return torch.nn.functional.one_hot(labels, 3).movedim(-1, 0)[None].float()


def test_the_identity_is_consistent(dim: int) -> None:
    consistency = inverse_consistency(transform(dim), two_boxes(dim))
    assert consistency.dice.tolist() == [[1.0, 1.0]]
    # The identity's points pass through normalised coordinates in single precision: 1e-7 of the grid's size.
    assert consistency.mice.item() < 1e-5


def test_a_shift_within_the_image_is_consistent(dim: int) -> None:
    consistency = inverse_consistency(transform(dim, shift=3.25), two_boxes(dim))
    assert consistency.mice.item() < 1e-4
    # The labels are interpolated at fractions of 1/4 and back: the argmax of a straight edge does not move.
    assert consistency.dice.min().item() == 1.0


def test_mice_is_the_error_of_two_maps_that_do_not_undo_each_other(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward 1.5 voxel, back 1 voxel: every point returns half a voxel off."""
    shape = SHAPES[dim]

    def shift(by: float) -> torch.Tensor:
        return torch.cat([torch.full((1, 1, *shape), by), torch.zeros(1, dim - 1, *shape)], dim=1)

    monkeypatch.setattr(Transform, "fixed_to_moving", lambda self: shift(1.5))
    monkeypatch.setattr(Transform, "moving_to_fixed", lambda self: shift(-1.0))
    consistency = inverse_consistency(transform(dim), two_boxes(dim))
    assert consistency.mice.item() == pytest.approx(0.5, abs=1e-5)
    assert consistency.dice.min().item() < 0.95


def test_mice_counts_the_atlas_foreground_only(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = two_boxes(dim)
    error = torch.zeros(1, dim, *SHAPES[dim])
    error[:, 0] = torch.where(labels[:, 0] > 0, 7.0, 0.0)  # wrong in the background
    monkeypatch.setattr(Transform, "fixed_to_moving", lambda self: torch.zeros_like(error))
    monkeypatch.setattr(Transform, "moving_to_fixed", lambda self: error)
    assert inverse_consistency(transform(dim), labels).mice.item() < 1e-5


def test_mice_grows_as_the_integration_coarsens(dim: int) -> None:
    """For v = a (p − c) a step of size h = a / 2ⁿ and its inverse make 1 + h⁴ / 4, and there are 2ⁿ of them."""
    rate = -0.6
    centre = torch.tensor([(n // 2 - 1) / 2 for n in SHAPES[dim]]).reshape(1, -1, *[1] * dim)
    velocity = rate * (identity_grid([n // 2 for n in SHAPES[dim]], centre.device) - centre)
    labels = two_boxes(dim)
    centre = torch.tensor([(n - 1) / 2 for n in SHAPES[dim]]).reshape(1, -1, *[1] * dim)
    distance = (identity_grid(list(SHAPES[dim]), centre.device) - centre).norm(dim=1)[labels[:, 0] == 0].mean().item()
    found = [inverse_consistency(transform(dim, velocity, squarings=n), labels) for n in range(4)]
    for n, consistency in enumerate(found):
        factor = (1 + (rate / 2**n) ** 4 / 4) ** 2**n - 1
        # Linear fields are interpolated exactly; what is left is single precision.
        assert consistency.mice.item() == pytest.approx(factor * distance, rel=1e-2, abs=1e-4)
    assert found[0].dice.mean().item() < found[3].dice.mean().item()


def test_good_integration_meets_the_papers_figures(dim: int, smooth_field: Fields) -> None:
    """The paper's MICE is 0.04 to 0.06 voxel, its IC-DSC 0.996; the boxes here are small and have sharp corners."""
    consistency = inverse_consistency(transform(dim, smooth(dim, smooth_field)), two_boxes(dim))
    assert consistency.mice.item() < 0.06
    assert consistency.dice.min().item() > 0.95


def test_cases_of_a_batch_are_independent(dim: int, smooth_field: Fields) -> None:
    velocity = smooth(dim, smooth_field, batch=3)
    batch = inverse_consistency(transform(dim, velocity), two_boxes(dim))
    assert (batch.dice.shape, batch.mice.shape) == ((3, 2), (3,))
    for index in range(3):
        alone = inverse_consistency(transform(dim, velocity[[index]]), two_boxes(dim))
        torch.testing.assert_close(alone.dice[0], batch.dice[index])
        torch.testing.assert_close(alone.mice[0], batch.mice[index])


def test_a_label_that_the_atlas_lacks_has_no_dice(dim: int) -> None:
    labels = torch.cat([two_boxes(dim), torch.zeros(1, 1, *SHAPES[dim])], dim=1)
    dice = inverse_consistency(transform(dim), labels).dice[0]
    assert dice[:2].tolist() == [1.0, 1.0]
    assert dice[2].isnan()


def test_a_subject_maps_to_itself(dim: int, smooth_field: Fields) -> None:
    """Up to interpolation of the two displacement fields, which costs some hundredths of a voxel here."""
    own = transform(dim, smooth(dim, smooth_field), shift=2.0)
    inside = (slice(None), slice(None), *[slice(6, -6)] * dim)  # nearer to the border Φ⁻¹ may leave the grid
    assert subject_to_subject(own, own)[inside].norm(dim=1).max().item() < 0.25
    assert subject_to_subject(own, own)[inside].norm(dim=1).mean().item() < 0.04
    labels = two_boxes(dim)
    mapped = map_subject(labels, own, own).argmax(dim=1)
    overlap = (mapped == labels.argmax(dim=1)).float().mean().item()
    assert overlap > 0.99


def test_subjects_that_are_shifts_of_the_atlas_map_by_the_difference(dim: int) -> None:
    """Subject j lies 3 voxels beyond the atlas, subject i 1 voxel before: from j to i it is 4 voxels back."""
    source, target = transform(dim, shift=3.0), transform(dim, shift=-1.0)
    atlas = two_boxes(dim)
    of_source, of_target = (atlas.roll(by, dims=2) for by in (3, -1))
    torch.testing.assert_close(map_subject(of_source, source, target), of_target, atol=1e-4, rtol=0)
    points = torch.full((1, 5, dim), 12.0)
    moved = map_points(points, source, target)
    assert moved.shape == points.shape
    expected = points.clone()
    expected[..., 0] -= 4
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=0)


def test_points_move_with_the_labels(dim: int, smooth_field: Fields) -> None:
    """A blob at a point of subject j comes out at the mapped point of subject i."""
    velocities = [smooth(dim, smooth_field, seed=seed) for seed in (1, 2)]
    source, target = (transform(dim, velocity) for velocity in velocities)
    point = torch.tensor([[[14.0, 13.0, 12.0][:dim]]])
    grid = identity_grid(list(SHAPES[dim]), torch.device("cpu"))
    blob = torch.exp(-(grid - point.movedim(1, -1)[(..., *[None] * (dim - 1))]).square().sum(1, keepdim=True) / 8)
    mapped = map_subject(blob, source, target)
    centre = (mapped * grid).flatten(2).sum(-1) / mapped.flatten(2).sum(-1)
    moved = map_points(point, source, target)[:, 0]
    assert (moved - point[:, 0]).norm().item() > 0.5
    # The blob has a width over which the deformation varies.
    assert (centre - moved).norm().item() < 0.5


def test_one_subject_maps_to_many(dim: int, smooth_field: Fields) -> None:
    one = transform(dim, smooth(dim, smooth_field))
    many = transform(dim, smooth(dim, smooth_field, batch=3, seed=5))
    for pair, alone in (
        (subject_to_subject(one, many), [subject_to_subject(one, many[k]) for k in range(3)]),
        (subject_to_subject(many, one), [subject_to_subject(many[k], one) for k in range(3)]),
    ):
        torch.testing.assert_close(pair, torch.cat(alone))
