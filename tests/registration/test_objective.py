# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from atlas_istn.registration.objective import Objective, Pair
from atlas_istn.spatial import Transform, exponential, resize_displacement

SHAPES = {2: (32, 28), 3: (16, 20, 18)}
Field = Callable[..., torch.Tensor]


def transform_of(velocity: torch.Tensor, shape: tuple[int, ...]) -> Transform:
    dim = len(shape)
    affine = torch.eye(dim, dim + 1).expand(len(velocity), -1, -1)
    return Transform(velocity, affine, shape, (1.0,) * dim)


def both_ways(moving: torch.Tensor, fixed: torch.Tensor) -> Objective:
    return Objective([Pair(moving, fixed), Pair(moving, fixed, backward=True)])


def test_a_perfect_case_costs_nothing(dim: int, ring: Field) -> None:
    atlas = ring(SHAPES[dim])
    still = transform_of(torch.zeros(2, dim, *[n // 2 for n in SHAPES[dim]]), SHAPES[dim])
    terms = both_ways(atlas, atlas.expand(2, -1, *SHAPES[dim]))(still)
    for value in (*terms.errors, terms.misfit, terms.penalty):
        torch.testing.assert_close(value, torch.zeros(2), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("backward", "integrations"),
    [([False], [-1]), ([True], [1]), ([True, False], [-1, 1]), ([False, False], [-1])],
    ids=["moving to fixed", "fixed to moving", "both", "two pairs one way"],
)
def test_only_directions_asked_for_are_integrated(
    backward: list[bool],
    integrations: list[int],
    ring: Field,
    smooth_field: Field,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    velocity = smooth_field((8, 8), 2.0, sigma=2.0).float()
    integrated: list[int] = []

    def counted(v: torch.Tensor, squarings: int) -> torch.Tensor:
        integrated.append(1 if torch.equal(v, velocity) else -1)
        return exponential(v, squarings)

    monkeypatch.setattr("atlas_istn.spatial.deformation.exponential", counted)
    pairs = [Pair(ring((16, 16)), ring((16, 16)), backward=way) for way in backward]
    assert len(Objective(pairs)(transform_of(velocity, (16, 16))).errors) == len(pairs)
    assert integrated == integrations


def test_directions_point_where_they_say(dim: int, ring: Field) -> None:
    """A subject that is the atlas moved by 2 voxels: φ⁻¹ pulls the atlas there, φ the subject back."""
    atlas, subject = ring(SHAPES[dim], radius=0.25), ring(SHAPES[dim], shift=2.0, radius=0.25)
    # 2 voxels of the image on the half-resolution grid, corner centres shared.
    half = [n // 2 for n in SHAPES[dim]]
    shift = torch.full((1, dim, *SHAPES[dim]), 2.0)
    objective = both_ways(atlas, subject)
    right = objective(transform_of(resize_displacement(shift, half), SHAPES[dim]))
    wrong = objective(transform_of(resize_displacement(-shift, half), SHAPES[dim]))
    for near, far in zip(right.errors, wrong.errors, strict=True):
        assert near < 1e-4 < far


def test_regularisation_does_not_depend_on_the_matrix_size(dim: int, ring: Field, smooth_field: Field) -> None:
    """The same physical velocity on a grid of twice the size costs the same."""
    coarse, fine = (17,) * dim, (33,) * dim
    velocity = smooth_field(coarse, 1.5, sigma=3.0).float()
    penalties = []
    for shape, field in [(coarse, velocity), (fine, resize_displacement(velocity, list(fine)))]:
        penalties.append(both_ways(ring(shape), ring(shape))(transform_of(field, shape)).penalty)
    # The finer field is linear between the nodes of the coarser, so only the border's share of the mean differs.
    torch.testing.assert_close(penalties[0], penalties[1], rtol=0.1, atol=0)


def test_cases_of_a_batch_do_not_mix(dim: int, ring: Field, smooth_field: Field) -> None:
    velocity = smooth_field(tuple(n // 2 for n in SHAPES[dim]), 2.0, sigma=3.0, batch=2).float()
    atlas, targets = ring(SHAPES[dim]), torch.cat([ring(SHAPES[dim], shift) for shift in (1.0, 3.0)])
    together = both_ways(atlas, targets)(transform_of(velocity, SHAPES[dim]))
    alone = both_ways(atlas, targets[1:])(transform_of(velocity[1:], SHAPES[dim]))
    torch.testing.assert_close(together.misfit[1:], alone.misfit)
    torch.testing.assert_close(together.penalty[1:], alone.penalty)


def test_the_misfit_is_the_weighted_sum_of_the_errors(ring: Field) -> None:
    still = transform_of(torch.zeros(1, 2, 8, 8), (16, 16))
    images = ring((16, 16)), ring((16, 16), shift=2.0)
    terms = Objective([Pair(*images, weight=3.0), Pair(*images, weight=0.5, backward=True)])(still)
    torch.testing.assert_close(terms.misfit, 3.0 * terms.errors[0] + 0.5 * terms.errors[1])
