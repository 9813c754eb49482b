# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""How the field of a non-rigid map makes a deformation: one small class for each transformation model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .sampling import full_precision, identity_grid, sample_displacement
from .velocity import SQUARINGS, exponential

__all__ = [
    "DeformationModel",
    "DisplacementField",
    "TwoDisplacementFields",
    "VelocityField",
    "compose_displacements",
    "invert_displacement",
]


class DeformationModel(Protocol):
    """Makes the displacement of φ, or of φ⁻¹, from the tensor that describes it."""

    def displacement(self, field: Tensor, inverse: bool) -> Tensor:
        """Return ``[B, dim, *grid]`` in voxels of its own grid, which has the extent of the image."""


@dataclass(frozen=True)
class VelocityField:
    """A stationary velocity field ``[B, dim, *grid]``: φ = exp(v), φ⁻¹ = exp(−v) (Atlas-ISTN, eq. 2-3).

    Attributes:
        squarings: of the exponential.
    """

    squarings: int = SQUARINGS

    def displacement(self, field: Tensor, inverse: bool) -> Tensor:
        """Integrate the velocity, forwards or backwards."""
        return exponential(-field if inverse else field, self.squarings)


@dataclass(frozen=True)
class DisplacementField:
    """A free displacement ``[B, dim, *grid]`` of φ⁻¹, the map that resamples the moving image (MAS-refine, eq. 3).

    Nothing keeps it from folding; where it does, it has no inverse.

    Attributes:
        iterations: of the fixed point iteration that inverts it.
    """

    iterations: int = 30

    def displacement(self, field: Tensor, inverse: bool) -> Tensor:
        """Return the field itself, for φ⁻¹, or its inverse by fixed point iteration, for φ."""
        return full_precision(field) if inverse else invert_displacement(field, self.iterations)


@dataclass(frozen=True)
class TwoDisplacementFields:
    """Displacements of φ⁻¹ and, behind it, of φ, each for itself ``[B, 2 dim, *grid]`` (X-MAS, U and V).

    Whether one undoes the other is up to who makes them, such as a network that is trained to.
    """

    def displacement(self, field: Tensor, inverse: bool) -> Tensor:
        """Return the half of the field that belongs to the direction."""
        of_inverse, forward = full_precision(field).chunk(2, dim=1)
        return of_inverse if inverse else forward


def invert_displacement(displacement: Tensor, iterations: int = 30) -> Tensor:
    """Displacement v of the inverse map, ``v(p) = −u(p + v(p))``, by fixed point iteration.

    Converges where the displacement's gradient is below 1 in norm. How well it did, ``u(p + v(p)) + v(p)`` tells.

    Args:
        displacement: ``[B, dim, *shape]`` in voxels of its grid.
        iterations: resamplings of the field.
    """
    identity = identity_grid(list(displacement.shape[2:]), displacement.device)
    inverse = torch.zeros_like(full_precision(displacement))
    for _ in range(iterations):
        inverse = -sample_displacement(displacement, identity + inverse)
    return inverse


def compose_displacements(first: Tensor, second: Tensor) -> Tensor:
    """Compose the maps that move points by ``first`` and then by ``second``: ``[B, dim, *shape]`` in voxels."""
    points = identity_grid(list(first.shape[2:]), first.device) + first
    if len(points) < len(second):
        points, first = points.expand_as(second), first.expand_as(second)
    return first + sample_displacement(second, points)
