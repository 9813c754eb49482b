# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Registration of two images by optimisation alone: every part is the choice of a configuration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..spatial import Transform
from .objective import Objective, Pair, Regulariser, Similarity
from .optimise import Fit, Phase, Settling, optimise
from .regularisers import mean_squared_gradient
from .similarity import squared_error
from .transformations import Affine, Grid, Transformation

__all__ = ["Registration"]


class Registration:
    """Finds the map that makes a moving image like a fixed one, starting from the identity.

    Args:
        transformation: the family of maps.
        similarity: error of two images.
        regulariser: penalty of the field.
        regularisation: λ, its weight.
        iterations: Adam steps in all.
        stiff_fraction: share of them with ten-fold λ, in which the image moves as a whole.
        tolerance: see `Settling`.
        patience: see `Settling`.
    """

    def __init__(
        self,
        transformation: Transformation | None = None,
        similarity: Similarity = squared_error,
        regulariser: Regulariser = mean_squared_gradient,
        regularisation: float = 0.05,
        iterations: int = 100,
        stiff_fraction: float = 0.0,
        tolerance: float = 0.0,
        patience: int = 20,
    ) -> None:
        self.transformation = transformation or Affine()
        self.similarity = similarity
        self.regulariser = regulariser
        self.regularisation = regularisation
        self.iterations = iterations
        self.stiff_fraction = stiff_fraction
        self.settling = Settling(tolerance, patience)

    def __call__(self, moving: Tensor, fixed: Tensor, spacing: Sequence[float] | None = None) -> tuple[Transform, Fit]:
        """Register a batch of pairs of images ``[B, C, *shape]`` on one grid, independently of each other.

        Args:
            moving: the images that are moved; a batch of one is moved onto each.
            fixed: the images that stay.
            spacing: size of a voxel along each axis, in millimetres; default 1.

        Returns:
            The maps, and how the optimisation went.
        """
        shape = tuple(fixed.shape[2:])
        grid = Grid(shape, tuple(spacing or [1.0] * len(shape)), fixed.device)
        parameters = self.transformation.begin(len(fixed), grid)
        stiff = round(self.stiff_fraction * self.iterations)
        phases = [
            Phase(stiff, 10 * self.regularisation),
            Phase(self.iterations - stiff, self.regularisation),
        ]
        objective = Objective([Pair(moving, fixed, self.similarity)], self.regulariser)
        fit = optimise(parameters, objective, phases, self.settling)
        with torch.no_grad():
            return parameters.transform(*fit.state), fit
