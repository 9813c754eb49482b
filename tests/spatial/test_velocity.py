# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.ndimage import map_coordinates

from atlas_istn.spatial import SQUARINGS, exponential, identity_grid, jacobian_determinant, sample_displacement

SHAPES = {2: (64, 64), 3: (48, 48, 48)}
LINEAR = {
    "rotation": [[0, -0.6, 0.2], [0.6, 0, -0.3], [-0.2, 0.3, 0]],
    "contraction": np.diag([-0.5, -0.3, -0.4]),
    "expansion and shear": [[0.3, 0.2, 0], [0, -0.2, 0.1], [0.1, 0, 0.2]],
}


def compose(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Displacement of second after first."""
    points = identity_grid(list(first.shape[2:]), first.device) + first
    return first + sample_displacement(second, points)


def runge_kutta(velocity: np.ndarray, points: np.ndarray, steps: int = 40) -> np.ndarray:
    """Follow points [dim, N] for unit time through a field [dim, *shape], by an integrator that is none of ours."""

    def value(at: np.ndarray) -> np.ndarray:
        return np.stack([map_coordinates(component, at, order=1, mode="nearest") for component in velocity])

    h = 1 / steps
    for _ in range(steps):
        k1 = value(points)
        k2 = value(points + h / 2 * k1)
        k3 = value(points + h / 2 * k2)
        k4 = value(points + h * k3)
        points = points + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return points


@pytest.mark.parametrize("name", LINEAR)
def test_linear_field_flows_by_the_matrix_exponential(dim: int, name: str) -> None:
    shape = [31, 33, 29][:dim]
    matrix = np.asarray(LINEAR[name], dtype=float)[:dim, :dim]
    centre = (np.array(shape, dtype=float) - 1) / 2
    relative = np.indices(shape) - centre.reshape(dim, *[1] * dim)
    velocity = torch.from_numpy(np.einsum("ij,j...->i...", matrix, relative))[None]
    expected = np.einsum("ij,j...->i...", expm(matrix) - np.eye(dim), relative)
    # Within 8 voxels of the centre no path leaves the grid, beyond whose border the field is not linear any more.
    interior = np.linalg.norm(relative, axis=0) <= 8

    def error(squarings: int) -> float:
        return float(np.abs(exponential(velocity, squarings)[0].numpy() - expected)[:, interior].max())

    # The field is linear, so interpolation is exact; what is left is the midpoint step, |A|³ r / (6 · 4ⁿ).
    assert error(5) < 1e-3
    assert error(SQUARINGS) < 1.1 * np.linalg.norm(matrix, 2) ** 3 * 8 / (6 * 4**SQUARINGS)


@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_fine_step_integration(dim: int, seed: int, smooth_field: Callable[..., torch.Tensor]) -> None:
    """At most 0.03 voxel off for a smooth field of up to 8 voxels."""
    velocity = smooth_field(SHAPES[dim], amplitude=8.0, seed=seed)
    points = np.indices(SHAPES[dim])[(slice(None), *[slice(0, None, 2 if dim == 2 else 5)] * dim)]
    nodes = points.reshape(dim, -1)
    flow = runge_kutta(velocity[0].numpy(), nodes.astype(float))
    ours = nodes + exponential(velocity.float())[0].numpy()[(slice(None), *nodes)]
    error = np.linalg.norm(ours - flow, axis=0)
    inside = ((flow >= 0) & (flow <= SHAPES[dim][0] - 1)).all(axis=0)
    assert error[inside].max() <= 0.03
    # Beyond the border ours continues the displacement, the reference the velocity: close, but not the same.
    assert error.max() <= 0.15


def test_more_squarings_converge(smooth_field: Callable[..., torch.Tensor]) -> None:
    velocity = smooth_field((48, 48), amplitude=8.0)
    finest = exponential(velocity, 10)
    errors = [(exponential(velocity, n) - finest).abs().max() for n in (3, 4, 5, 6)]
    assert errors == sorted(errors, reverse=True)


def test_negative_velocity_inverts(dim: int, smooth_field: Callable[..., torch.Tensor]) -> None:
    velocity = smooth_field(SHAPES[dim], amplitude=8.0)
    forward, inverse = exponential(velocity), exponential(-velocity)
    reached = identity_grid(list(SHAPES[dim]), forward.device) + forward
    inside = ((reached >= 0) & (reached <= SHAPES[dim][0] - 1)).all(dim=1)
    # Each map is linear between voxels, which costs up to |∇²u| / 8; most next to the border, where paths leave and
    # return.
    error = compose(forward, inverse).norm(dim=1)[inside]
    assert error.mean() < 0.02
    assert error.max() < 0.25


def test_zero_and_constant_velocities(dim: int) -> None:
    zero = torch.zeros(1, dim, *[9] * dim)
    assert torch.equal(exponential(zero), zero)
    torch.testing.assert_close(exponential(zero + 1.7), zero + 1.7, rtol=0, atol=1e-5)


def test_gradients_are_right(dim: int, smooth_field: Callable[..., torch.Tensor]) -> None:
    velocity = smooth_field((6, 5, 4)[:dim], amplitude=0.9, sigma=1.0, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: exponential(v, squarings=3), (velocity,))


def test_half_precision_and_autocast_change_nothing(smooth_field: Callable[..., torch.Tensor]) -> None:
    velocity = smooth_field((32, 32), amplitude=8.0).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = exponential(velocity)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, exponential(velocity.float()))


def test_what_folds_of_a_rough_velocity_is_its_sampling_not_its_flow() -> None:
    """A flow never folds. Where neighbours are 200 times nearer than before, no grid can show it without folds."""
    velocity = 2 * torch.from_numpy(np.random.default_rng(0).standard_normal((1, 2, 20, 20)))
    found = [float((jacobian_determinant(exponential(velocity, count)) <= 0).double().mean()) for count in (5, 9)]
    assert found[0] > 0.01
    assert found[1] > 0.5 * found[0]  # so it is not for want of squarings

    def flow(points: torch.Tensor, steps: int = 400) -> torch.Tensor:
        for _ in range(steps):
            half = points + sample_displacement(velocity, points) / (2 * steps)
            points = points + sample_displacement(velocity, half) / steps
        return points

    start, step = identity_grid([20, 20], torch.device("cpu")).double(), 1e-5
    shifts = step * torch.eye(2, dtype=torch.float64).reshape(2, 2, 1, 1)
    along = [(flow(start + shift) - flow(start - shift)) / (2 * step) for shift in shifts]
    assert (along[0][:, 0] * along[1][:, 1] - along[0][:, 1] * along[1][:, 0] > 0).all()
