# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Inverse consistency where its value is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from atlas_istn.spatial import Transform, VelocityField, compose_displacements, identity_grid, warp
from atlas_istn.spatial.consistency import inverse_consistency

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


def test_a_composed_displacement_resamples_once_what_two_would_twice(smooth_field: Fields, dim: int) -> None:
    shape = SHAPES[dim]
    first, second = (smooth_field(shape, 2.0, seed=seed).float() for seed in (0, 1))
    place = identity_grid(list(shape), first.device) / 10
    image = torch.sin(place.sum(dim=1, keepdim=True))
    inside = (slice(None), slice(None), *[slice(4, -4)] * dim)
    twice = warp(warp(image, second), first)
    torch.testing.assert_close(
        warp(image, compose_displacements(first, second))[inside], twice[inside], rtol=0, atol=5e-3
    )
