# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from atlas_istn.spatial import (
    affine_matrix,
    apply_affine,
    compose_affine,
    decompose_affine,
    identity_grid,
    invert_affine,
    num_affine_parameters,
)

SHAPE, SPACING = (12, 9, 5), (1.0, 1.5, 4.0)
UNBOUNDED = 1e6  # tanh is the identity to the last bit here


def parameters_of(dim: int, translation: float = 0.0, rotation: float = 0.0, log_scale: float = 0.0) -> torch.Tensor:
    """Parameters [1, P] with the same value in each group."""
    angles = 1 if dim == 2 else 3
    values = [translation] * dim + [rotation] * angles + [log_scale] * dim
    return torch.tensor([values], dtype=torch.float64)


def limits(dim: int, value: float = UNBOUNDED) -> torch.Tensor:
    return torch.full((num_affine_parameters(dim),), value, dtype=torch.float64)


def mapped_grid(matrix: torch.Tensor, dim: int) -> torch.Tensor:
    grid = identity_grid(list(SHAPE[:dim]), matrix.device).double()
    return apply_affine(matrix, grid, list(SPACING[:dim]), list(SHAPE[:dim]))


def test_zero_parameters_are_the_identity(dim: int) -> None:
    matrix = affine_matrix(parameters_of(dim), limits(dim, 0.5))
    assert torch.equal(matrix[0], torch.eye(dim, dim + 1, dtype=torch.float64))
    grid = identity_grid(list(SHAPE[:dim]), matrix.device).double()
    torch.testing.assert_close(mapped_grid(matrix, dim), grid, rtol=0, atol=1e-12)


def test_regular_at_the_identity(dim: int) -> None:
    """Gradients are right there, and every parameter moves the map in a direction of its own (Euler angles do not)."""
    zero = parameters_of(dim).requires_grad_()
    bounds = limits(dim, 0.8)
    assert torch.autograd.gradcheck(lambda p: affine_matrix(p, bounds), (zero,))
    jacobian = torch.autograd.functional.jacobian(lambda p: affine_matrix(p, bounds).flatten(), zero)
    assert torch.linalg.matrix_rank(jacobian.flatten(1)) == num_affine_parameters(dim)


def test_gradients_are_right_far_from_the_identity(dim: int) -> None:
    parameters = torch.linspace(-0.6, 0.7, num_affine_parameters(dim), dtype=torch.float64)[None].requires_grad_()
    bounds = limits(dim, 0.8)
    points = 10 * torch.rand(1, dim, *[2] * dim, dtype=torch.float64)

    def inverse_points(p: torch.Tensor) -> torch.Tensor:
        matrix = invert_affine(affine_matrix(p, bounds))
        return apply_affine(matrix, points, list(SPACING[:dim]), list(SHAPE[:dim]))

    assert torch.autograd.gradcheck(inverse_points, (parameters,))


def test_rotation_agrees_with_scipy() -> None:
    vector = np.array([0.4, -1.1, 0.7])
    parameters = torch.zeros(1, 9, dtype=torch.float64)
    parameters[0, 3:6] = torch.from_numpy(vector)
    matrix = affine_matrix(parameters, limits(3))[0, :, :3].numpy()
    # tanh with a limit of 1e6 bends 1 by 3e-13.
    np.testing.assert_allclose(matrix, Rotation.from_rotvec(vector).as_matrix(), atol=1e-10)
    plane = affine_matrix(parameters_of(2, rotation=0.4), limits(2))[0, :, :2].numpy()
    np.testing.assert_allclose(plane, [[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]], atol=1e-10)


def test_order_is_scale_then_rotation_then_translation() -> None:
    matrix = affine_matrix(torch.tensor([[3.0, -2.0, np.pi / 2, np.log(2.0), 0.0]], dtype=torch.float64), limits(2))
    # (1, 1) is scaled to (2, 1), turned to (-1, 2), moved to (2, 0).
    expected = torch.tensor([2.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(matrix[0, :, :2].sum(dim=1) + matrix[0, :, 2], expected, rtol=0, atol=1e-9)


def test_rotation_of_an_anisotropic_volume_is_rigid_in_millimetres(dim: int) -> None:
    matrix = affine_matrix(parameters_of(dim, translation=4.0, rotation=0.5), limits(dim))
    spacing = torch.tensor(SPACING[:dim], dtype=torch.float64).reshape(1, dim, 1)
    before = identity_grid(list(SHAPE[:dim]), matrix.device).double().flatten(2) * spacing
    after = mapped_grid(matrix, dim).flatten(2) * spacing
    torch.testing.assert_close(torch.cdist(after.mT, after.mT), torch.cdist(before.mT, before.mT), rtol=0, atol=1e-6)


def test_the_image_centre_stays_under_rotation_and_scale(dim: int) -> None:
    matrix = affine_matrix(parameters_of(dim, rotation=0.7, log_scale=0.3), limits(dim))
    centre = torch.tensor([(n - 1) / 2 for n in SHAPE[:dim]], dtype=torch.float64).reshape(1, dim, *[1] * dim)
    moved = apply_affine(matrix, centre, list(SPACING[:dim]), list(SHAPE[:dim]))
    torch.testing.assert_close(moved, centre, rtol=0, atol=1e-12)


def test_translation_is_in_millimetres() -> None:
    matrix = affine_matrix(parameters_of(3, translation=6.0), limits(3))
    shift = mapped_grid(matrix, 3) - identity_grid(list(SHAPE), matrix.device)
    expected = torch.tensor([6.0, 4.0, 1.5], dtype=torch.float64)  # voxels of 1, 1.5 and 4 mm
    torch.testing.assert_close(shift[0, :, 0, 0, 0], expected, rtol=0, atol=1e-9)


@given(st.lists(st.floats(-30, 30), min_size=9, max_size=9), st.sampled_from([2, 3]))
@settings(deadline=None, max_examples=50)
def test_bounded_and_exactly_inverted(values: list[float], dim: int) -> None:
    """Whatever the network says, the map stays within its limits and has its inverse."""
    count = num_affine_parameters(dim)
    angles = count - 2 * dim
    bounds = torch.tensor([10.0] * dim + [0.785] * angles + [1.0] * dim, dtype=torch.float64)
    matrix = affine_matrix(torch.tensor([values[:count]], dtype=torch.float64), bounds)
    scales = torch.linalg.svdvals(matrix[0, :, :dim])
    assert scales.max() <= np.e + 1e-9
    assert scales.min() >= 1 / np.e - 1e-9
    assert matrix[0, :, dim].abs().max() <= 10 + 1e-9
    grid = identity_grid(list(SHAPE[:dim]), matrix.device).double()
    there = mapped_grid(matrix, dim)
    back = apply_affine(invert_affine(matrix), there, list(SPACING[:dim]), list(SHAPE[:dim]))
    torch.testing.assert_close(back, grid.expand_as(back), rtol=0, atol=1e-9)


@pytest.mark.parametrize("group", ["translation", "rotation", "log_scale"])
def test_a_limit_of_zero_switches_a_parameter_off(dim: int, group: str) -> None:
    matrix = affine_matrix(parameters_of(dim, **{group: 3.0}), limits(dim, 0.0))
    assert torch.equal(matrix[0], torch.eye(dim, dim + 1, dtype=torch.float64))


def test_each_case_of_a_batch_has_its_own_map(dim: int) -> None:
    parameters = torch.cat([parameters_of(dim, 1.0, 0.2, 0.1), parameters_of(dim, -2.0, 0.4, -0.3)])
    together = mapped_grid(affine_matrix(parameters, limits(dim, 2.0)), dim)
    for case in range(2):
        alone = mapped_grid(affine_matrix(parameters[case : case + 1], limits(dim, 2.0)), dim)
        torch.testing.assert_close(together[case : case + 1], alone)


def test_decomposition_inverts_composition(dim: int) -> None:
    parameters = 0.8 * torch.randn(6, 5 if dim == 2 else 9, generator=torch.Generator().manual_seed(0)).double()
    parameters[0] = 0.0  # the identity is no special case
    matrix = compose_affine(parameters)
    torch.testing.assert_close(decompose_affine(matrix), parameters, atol=1e-10, rtol=0)
