# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Figures of transforms whose volume change is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from atlas_istn.evaluation.deformation import deformation_figures, inverse_error
from atlas_istn.io.outputs import world_transforms
from atlas_istn.spatial import DisplacementField, Transform


def stretched(dim: int, factor: float) -> Transform:
    """Φ⁻¹ stretches the first axis by a factor about voxel 0, in half of the image."""
    shape = (20, 12, 10)[:dim]
    place = torch.arange(shape[0], dtype=torch.float32).reshape(-1, *[1] * (dim - 1)).expand(shape)
    field = torch.zeros(1, dim, *shape)
    field[0, 0] = (factor - 1) * place.clamp_max(9.5)
    return Transform(field, torch.eye(dim, dim + 1)[None], shape, (1.0,) * dim, DisplacementField())


def test_the_spread_of_the_logarithm_is_that_of_the_volume_change(dim: int) -> None:
    figures = deformation_figures(stretched(dim, 1.5))
    # 9 planes at 1.5, and those at the bend between: 9 at 1; one at each side of the bend has a mean of both.
    steps = torch.cat([torch.full((9,), 1.5), torch.tensor([1.375, 1.125]), torch.ones(9)]).double()
    assert figures["min_jacobian"] == pytest.approx(1.0, abs=1e-5)
    assert figures["folded_fraction"] == 0
    assert figures["log_jacobian_sd"] == pytest.approx(float(steps.log().std(correction=0)), rel=1e-4)
    learn2reg = float((steps + 3).log().std(correction=0))
    assert figures["log_jacobian_sd_learn2reg"] == pytest.approx(learn2reg, rel=1e-4)


def test_folds_are_counted() -> None:
    figures = deformation_figures(stretched(2, -0.5))
    assert figures["min_jacobian"] == pytest.approx(-0.5, abs=1e-5)
    assert figures["folded_fraction"] == pytest.approx(10 / 20)
    assert math.isfinite(figures["log_jacobian_sd"])


def test_the_error_of_an_inverse_is_measured_in_millimetres(
    smooth_field: Callable[..., torch.Tensor], dim: int
) -> None:
    shape = (20, 18, 16)[:dim]
    affine = np.diag([2.0] * dim + [1.0])
    field = smooth_field(shape, 2.0, sigma=4.0).float()
    transform = Transform(field, torch.eye(dim, dim + 1)[None], shape, (2.0,) * dim, DisplacementField())
    maps = world_transforms(transform, affine, affine)
    figures = inverse_error(*maps, affine, shape)
    assert figures["inverse_error_mean"] < 0.3  # at the border, where a field has no more values, it is more
    shift = inverse_error(lambda points: points, lambda points: points + 3.0, affine, shape)
    assert shift["inverse_error_mean"] == pytest.approx(3.0 * math.sqrt(dim))
