# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Exponential of a stationary velocity field by scaling and squaring (Arsigny et al. 2006; Atlas-ISTN, eq. 2-3)."""

from __future__ import annotations

from torch import Tensor

from .sampling import full_precision, identity_grid, per_axis, resample

__all__ = ["SQUARINGS", "exponential"]

SQUARINGS = 3
"""By default. Against 9 of them, the largest error anywhere is 0.006 voxels of the field where velocities are as large
as in the hippocampus (2.6 voxels), and 0.02 at 8 voxels: a tenth and less of what interpolation on the grid costs."""


def exponential(velocity: Tensor, squarings: int = SQUARINGS) -> Tensor:
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
    shape, velocity = list(velocity.shape[2:]), full_precision(velocity)
    # In the coordinates of `resample`, so that nothing has to be rescaled or turned about between the squarings.
    size = per_axis([2.0 / max(n - 1, 1) for n in shape], velocity).reshape([1, -1] + [1] * len(shape))
    identity = (identity_grid(shape, velocity.device) * size - 1.0).flip(1)
    step = (velocity * size).flip(1) / 2**squarings
    displacement = resample(step, (identity + 0.5 * step).movedim(1, -1))
    for _ in range(squarings):
        displacement = displacement + resample(displacement, (identity + displacement).movedim(1, -1))
    return displacement.flip(1) / size
