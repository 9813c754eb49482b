# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Transformation model: sampling, affine maps, velocity fields and their composition, in 2D and 3D.

Displacement and velocity fields are ``[B, dim, *shape]`` in voxels of their own grid, their components ordered as the
array axes; ``warp(z, u)(p) = z(p + u(p))``; grids of different size share their corner voxel centres
(``align_corners=True``). Nothing in here imports from the rest of the package.
"""

from __future__ import annotations

from .affine import (
    affine_matrix,
    apply_affine,
    compose_affine,
    decompose_affine,
    invert_affine,
    num_affine_parameters,
)
from .b_spline import BSpline, control_points
from .deformation import (
    DeformationModel,
    DisplacementField,
    TwoDisplacementFields,
    VelocityField,
    compose_displacements,
    invert_displacement,
)
from .jacobian import displacement_gradient, jacobian_determinant
from .labels import label_indices, one_hot_labels
from .precision import mixed_precision
from .sampling import identity_grid, multiply_axis, per_axis, resample, resize_displacement, sample_displacement, warp
from .transform import Transform, fixed_to_moving_displacement, moving_to_fixed_displacement
from .velocity import SQUARINGS, exponential

__all__ = [
    "SQUARINGS",
    "BSpline",
    "DeformationModel",
    "DisplacementField",
    "Transform",
    "TwoDisplacementFields",
    "VelocityField",
    "affine_matrix",
    "apply_affine",
    "compose_affine",
    "compose_displacements",
    "control_points",
    "decompose_affine",
    "displacement_gradient",
    "exponential",
    "fixed_to_moving_displacement",
    "identity_grid",
    "invert_affine",
    "invert_displacement",
    "jacobian_determinant",
    "label_indices",
    "mixed_precision",
    "moving_to_fixed_displacement",
    "multiply_axis",
    "num_affine_parameters",
    "one_hot_labels",
    "per_axis",
    "resample",
    "resize_displacement",
    "sample_displacement",
    "warp",
]
