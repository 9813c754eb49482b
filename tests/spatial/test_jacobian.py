# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

import numpy as np
import torch

from atlas_istn.spatial import (
    affine_matrix,
    apply_affine,
    displacement_gradient,
    exponential,
    identity_grid,
    jacobian_determinant,
    num_affine_parameters,
)

SHAPE = (12, 9, 8)


def affine_displacement(dim: int, rotation: float = 0.0, log_scale: float = 0.0) -> torch.Tensor:
    """Displacement of a rotation and scaling of an isotropic grid, float64."""
    parameters = torch.zeros(1, num_affine_parameters(dim), dtype=torch.float64)
    parameters[:, dim:-dim], parameters[:, -dim:] = rotation, log_scale
    matrix = affine_matrix(parameters, torch.full((parameters.shape[1],), 1e6, dtype=torch.float64))
    grid = identity_grid(list(SHAPE[:dim]), matrix.device).double()
    return apply_affine(matrix, grid, [1.0] * dim, list(SHAPE[:dim])) - grid


def test_gradient_of_a_linear_field(dim: int) -> None:
    matrix = torch.randn(dim, dim, dtype=torch.float64)
    grid = identity_grid(list(SHAPE[:dim]), matrix.device).double()
    gradient = displacement_gradient(torch.einsum("ij,bj...->bi...", matrix, grid))
    expected = matrix.reshape(1, dim, dim, *[1] * dim).expand_as(gradient)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_determinant_of_scaling_is_exact_up_to_the_border(dim: int) -> None:
    determinant = jacobian_determinant(affine_displacement(dim, log_scale=np.log(1.2)))
    torch.testing.assert_close(determinant, torch.full_like(determinant, 1.2**dim), rtol=0, atol=1e-9)


def test_rotation_preserves_volume(dim: int) -> None:
    determinant = jacobian_determinant(affine_displacement(dim, rotation=0.6))
    torch.testing.assert_close(determinant, torch.ones_like(determinant), rtol=0, atol=1e-9)


def test_reflection_is_seen_as_folding(dim: int) -> None:
    displacement = torch.zeros(1, dim, *SHAPE[:dim])
    displacement[:, 0] = -2 * identity_grid(list(SHAPE[:dim]), displacement.device)[:, 0]
    assert (jacobian_determinant(displacement) == -1).all()


def test_divergence_free_velocity_preserves_volume() -> None:
    """A vortex: independent of the affine code, and with a determinant of 1 by Liouville's theorem."""
    grid = identity_grid([48, 48], torch.device("cpu")).double() - 23.5
    bump = 0.5 * torch.exp(-grid.square().sum(dim=1, keepdim=True) / (2 * 8.0**2))
    vortex = torch.cat([-grid[:, 1:], grid[:, :1]], dim=1) * bump
    # Interpolation between voxels and central differences cost about |∇³v| h² / 6, some thousandths here.
    assert (jacobian_determinant(exponential(vortex)) - 1).abs().max() < 0.02


def test_gradients_are_right(dim: int) -> None:
    displacement = (0.2 * torch.randn(1, dim, *(4, 3, 3)[:dim], dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(jacobian_determinant, (displacement,))
