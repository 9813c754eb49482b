# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

"""Φ = T ∘ φ and Φ⁻¹ = φ⁻¹ ∘ T⁻¹ together, at the strength that training reaches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from atlas_istn.spatial import (
    Transform,
    VelocityField,
    affine_matrix,
    apply_affine,
    fixed_to_moving_displacement,
    identity_grid,
    invert_affine,
    jacobian_determinant,
    moving_to_fixed_displacement,
    num_affine_parameters,
    resize_displacement,
    sample_displacement,
    warp,
)

SHAPES = {2: (64, 56), 3: (40, 48, 36)}
SPACING = (1.0, 1.25, 2.0)
# Translation in millimetres, rotation in radians, logarithm of the scale. "strong" moves more than half of the points
# beyond the border.
AFFINES = {"none": (0.0, 0.0, 0.0), "moderate": (3.0, 0.2, 0.1), "strong": (12.0, 0.6, 0.35)}
Field = Callable[..., torch.Tensor]


@pytest.fixture
def transform(dim: int, smooth_field: Field) -> Callable[..., Transform]:
    """A function that makes a transform whose φ moves points by up to 6 voxels of the image."""

    def make(
        affine: str = "moderate", amplitude: float = 6.0, batch: int = 1, precision: torch.dtype = torch.float32
    ) -> Transform:
        shape = SHAPES[dim]
        half = tuple(-(-n // 2) for n in shape)
        velocity = smooth_field(half, amplitude / 2, sigma=4.0, seed=1, batch=batch).to(precision)
        translation, rotation, log_scale = AFFINES[affine]
        parameters = torch.full((batch, num_affine_parameters(dim)), rotation, dtype=precision)
        parameters[:, :dim], parameters[:, -dim:] = translation, log_scale
        matrix = affine_matrix(parameters, torch.full((parameters.shape[1],), 1e6))
        return Transform(velocity, matrix, shape, SPACING[:dim])

    return make


@pytest.mark.parametrize("affine", AFFINES)
def test_the_two_directions_invert_each_other(affine: str, dim: int, transform: Callable[..., Transform]) -> None:
    """‖Φ⁻¹ ∘ Φ − id‖ ≤ 0.1 voxel on average wherever Φ stays inside the image, and the other way round."""
    maps = transform(affine)
    forward, inverse = maps.fixed_to_moving(), maps.moving_to_fixed()
    size = torch.tensor(SHAPES[dim]).reshape(1, dim, *[1] * dim)
    for first, second in [(forward, inverse), (inverse, forward)]:
        points = identity_grid(list(SHAPES[dim]), first.device) + first
        inside = ((points >= 0) & (points <= size - 1)).all(dim=1)
        error = (first + sample_displacement(second, points)).norm(dim=1)[inside]
        assert inside.float().mean() > 0.2
        assert error.mean() <= 0.1


@pytest.mark.parametrize("affine", AFFINES)
def test_no_voxel_folds_up_to_the_border(affine: str, transform: Callable[..., Transform]) -> None:
    maps = transform(affine)
    assert (maps.jacobian_determinant() > 0).all()
    assert (jacobian_determinant(maps.fixed_to_moving()) > 0).all()


def test_without_deformation_the_maps_are_the_affine(dim: int, transform: Callable[..., Transform]) -> None:
    maps = transform("strong", amplitude=0.0)
    grid = identity_grid(list(SHAPES[dim]), maps.affine.device)
    spacing, shape = list(SPACING[:dim]), list(SHAPES[dim])
    # float32 at coordinates up to 100 voxels.
    expected = apply_affine(maps.affine, grid, spacing, shape)
    torch.testing.assert_close(grid + maps.fixed_to_moving(), expected, rtol=0, atol=1e-4)
    expected = apply_affine(invert_affine(maps.affine), grid, spacing, shape)
    torch.testing.assert_close(grid + maps.moving_to_fixed(), expected, rtol=0, atol=1e-4)


def test_a_deformation_is_integrated_once_unless_it_is_optimised(
    transform: Callable[..., Transform], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    integrate = VelocityField.displacement
    monkeypatch.setattr(VelocityField, "displacement", lambda *args: calls.append(args) or integrate(*args))
    maps = transform()
    maps.jacobian_determinant(), maps.moving_to_fixed(), maps.fixed_to_moving(), maps.deformation(inverse=True)
    assert len(calls) == 2  # both directions
    assert not torch.equal(maps.deformation(), maps.deformation(inverse=True))

    maps = replace(maps, field=maps.field.clone().requires_grad_())
    before = maps.deformation().detach()
    for _ in range(2):  # each call has a graph of its own
        maps.deformation().sum().backward()
    with torch.no_grad():
        maps.field.mul_(0.5)
        assert maps.deformation().abs().max() < 0.6 * before.abs().max()


def test_the_affine_acts_after_the_deformation(dim: int, transform: Callable[..., Transform]) -> None:
    """Φ(p) = T(φ(p)): eq. (7)."""
    maps = transform("moderate")
    grid = identity_grid(list(SHAPES[dim]), maps.affine.device)
    expected = apply_affine(
        maps.affine,
        grid + resize_displacement(maps.deformation(), list(SHAPES[dim])),
        list(SPACING[:dim]),
        list(SHAPES[dim]),
    )
    torch.testing.assert_close(grid + maps.fixed_to_moving(), expected, rtol=0, atol=1e-4)


def test_a_labelmap_survives_the_way_to_the_atlas_and_back(
    dim: int, transform: Callable[..., Transform], ring: Field
) -> None:
    labels = ring(SHAPES[dim])
    maps = transform("moderate")
    there_and_back = maps.to_fixed(maps.to_moving(labels))
    first, second = labels[:, 1] > 0.5, there_and_back[:, 1] > 0.5
    dice = 2 * (first & second).sum() / (first.sum() + second.sum())
    # Two linear interpolations round off an edge that is one voxel wide; the paper's IC-DSC is 0.996.
    assert dice > 0.97
    torch.testing.assert_close(there_and_back.sum(dim=1), torch.ones_like(labels[:, 0]), rtol=0, atol=1e-5)


def test_the_deformation_keeps_its_size_on_the_finer_grid(dim: int, transform: Callable[..., Transform]) -> None:
    maps = transform("none")
    for found, inverse in [(maps.fixed_to_moving(), False), (maps.moving_to_fixed(), True)]:
        expected = resize_displacement(maps.deformation(inverse), list(SHAPES[dim]))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)  # float32 at coordinates up to 100 voxels
        assert 0.5 * 6 < found.norm(dim=1).max() < 1.5 * 6


def test_a_batch_is_its_cases(dim: int, transform: Callable[..., Transform]) -> None:
    maps = transform("moderate", batch=3)
    assert len(maps) == 3
    rejoined = Transform.cat([maps[0], maps[1:]])
    assert torch.equal(rejoined.velocity, maps.velocity)
    torch.testing.assert_close(maps[1].moving_to_fixed(), maps.moving_to_fixed()[1:2])
    shared = torch.rand(1, 1, *SHAPES[dim])
    torch.testing.assert_close(maps.to_fixed(shared)[2:], maps[2].to_fixed(shared))


def test_detach_leaves_the_graph(transform: Callable[..., Transform]) -> None:
    maps = transform()
    maps.velocity.requires_grad_()
    assert maps.moving_to_fixed().requires_grad
    assert not maps.detach().moving_to_fixed().requires_grad


@pytest.mark.parametrize("compose", [fixed_to_moving_displacement, moving_to_fixed_displacement])
def test_gradients_are_right(compose: Callable[..., torch.Tensor], dim: int, smooth_field: Field) -> None:
    shape = (5, 4, 3)[:dim]
    deformation = smooth_field(shape, 0.8, sigma=1.0).requires_grad_()
    parameters = torch.linspace(-0.2, 0.3, num_affine_parameters(dim), dtype=torch.float64)[None].requires_grad_()
    bounds = torch.ones(parameters.shape[1])

    def displacement(u: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return compose(u, affine_matrix(p, bounds), list(SPACING[:dim]), [7, 6, 5][:dim])

    assert torch.autograd.gradcheck(displacement, (deformation, parameters))


def test_autocast_changes_nothing(dim: int, transform: Callable[..., Transform], ring: Field) -> None:
    """Under bf16 autocast every step stays in float32, or points would move by up to 0.3 voxel."""
    maps, labels = transform("moderate"), ring(SHAPES[dim])

    def results() -> list[torch.Tensor]:
        # Made anew inside, so that the matrix exponential and the inverse are under test as well.
        parameters = torch.full((1, num_affine_parameters(dim)), 0.2)
        affine = affine_matrix(parameters, torch.ones(parameters.shape[1]))
        fresh = Transform(maps.velocity, affine, maps.shape, maps.spacing)
        return [
            affine,
            invert_affine(affine),
            fresh.fixed_to_moving(),
            fresh.moving_to_fixed(),
            fresh.to_moving(labels),
            fresh.jacobian_determinant(),
            warp(labels, maps.fixed_to_moving()),
        ]

    expected = results()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = results()
    for ours, exact in zip(under_autocast, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, exact)


def test_double_precision_goes_through(transform: Callable[..., Transform]) -> None:
    assert transform(precision=torch.float64).moving_to_fixed().dtype == torch.float64
