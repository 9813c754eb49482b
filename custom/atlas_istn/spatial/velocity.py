# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Exponential of a stationary velocity field by scaling and squaring (Arsigny et al. 2006; Atlas-ISTN, eq. 2-3)."""

from __future__ import annotations

from torch import Tensor

from .sampling import full_precision, identity_grid, sample_displacement

__all__ = ["exponential"]


def exponential(velocity: Tensor, squarings: int = 5) -> Tensor:
    """Displacement of the time-one flow of a stationary velocity field, ``φ = exp(v)``, ``u = φ − id``.

    The first of the 2ⁿ small steps is a midpoint step, whose error is of second order: it costs one more resampling and
    replaces three squarings of the usual start ``v / 2ⁿ``. The inverse is ``exponential(-velocity)``. Beyond the
    border the field continues with the border's value. Costs ``squarings + 1`` resamplings of the field.

    Args:
        velocity: ``[B, dim, *shape]`` in voxels per unit time.
        squarings: number n of squarings.

    Returns:
        ``[B, dim, *shape]`` in voxels, float32, or float64 where the velocity is.
    """
    identity = identity_grid(list(velocity.shape[2:]), velocity.device)
    step = full_precision(velocity) / 2**squarings
    displacement = sample_displacement(step, identity + 0.5 * step)
    for _ in range(squarings):
        displacement = displacement + sample_displacement(displacement, identity + displacement)
    return displacement
