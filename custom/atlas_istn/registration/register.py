# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Registration of two images by optimisation alone: every part is the choice of a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import InputError
from ..spatial import Transform, multiply_axis
from .objective import Objective, Pair, Regulariser, Similarity
from .optimise import Fit, Phase, Settling, optimise
from .regularisers import mean_squared_gradient
from .similarity import squared_error
from .transformations import Affine, Grid, Transformation

__all__ = ["Registration"]

_LEAST = 8  # voxels along an axis of a coarser grid


class Registration:
    """Finds the map that makes a moving image like a fixed one, from coarse to fine.

    The refinement of MAS-refine, eq. (3), is one: a free displacement, `correlation`, `bending_energy`, and network
    predictions as another pair (IS) or none (I).

    Args:
        transformation: the family of maps.
        similarity: error of two images.
        regulariser: penalty of the field.
        regularisation: λ, its weight.
        iterations: Adam steps in all.
        stiff_fraction: share of them with ten-fold λ, in which the image moves as a whole.
        tolerance: see `Settling`.
        patience: see `Settling`.
        coarse: iterations on coarser grids that go before: how many times as coarse → how many. All with λ, as it is:
            the field stays on its own grid throughout.

    Raises:
        InputError: a spline, whose coefficients are in voxels of the image, with coarser grids.
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
        coarse: Mapping[float, int] | None = None,
    ) -> None:
        self.transformation = transformation or Affine()
        self.coarse = {float(factor): count for factor, count in (coarse or {}).items()}
        if self.coarse and getattr(self.transformation, "kind", "") == "b_spline":
            raise InputError("coarse: a B-spline is registered on one grid; leave it out, or choose another kind.")
        self.similarity = similarity
        self.regulariser = regulariser
        self.regularisation = regularisation
        self.iterations = iterations
        self.stiff_fraction = stiff_fraction
        self.settling = Settling(tolerance, patience)

    def __call__(
        self,
        moving: Tensor,
        fixed: Tensor,
        spacing: Sequence[float] | None = None,
        start: Sequence[Tensor] | None = None,
        others: Sequence[Pair] = (),
    ) -> tuple[Transform, Fit]:
        """Register a batch of pairs of images ``[B, C, *shape]`` on one grid, independently of each other.

        Args:
            moving: the images that are moved; a batch of one is moved onto each.
            fixed: the images that stay; a batch of one for all.
            spacing: size of a voxel along each axis, in millimetres; default 1.
            start: raw parameters to start from, as the state of a `Fit`; default those of the identity.
            others: what else the map shall make alike, on the same grid.

        Returns:
            The maps, and how the optimisation went, on the full grid.
        """
        shape = tuple(fixed.shape[2:])
        grid = Grid(shape, tuple(spacing or [1.0] * len(shape)), fixed.device)
        state = self.transformation.initial(max(len(moving), len(fixed)), grid) if start is None else start
        pairs = [Pair(moving, fixed, self.similarity), *others]
        stiff = round(self.stiff_fraction * self.iterations)
        with torch.no_grad():
            for factor, iterations in sorted(self.coarse.items(), reverse=True):
                level = _coarser_grid(grid, factor)
                small = [replace(p, moving=_coarser(p.moving, level), fixed=_coarser(p.fixed, level)) for p in pairs]
                parameters = self.transformation.resume(state, level)
                phases = [Phase(iterations, self.regularisation)]
                state = optimise(parameters, Objective(small, self.regulariser), phases, self.settling).state
            parameters = self.transformation.resume(state, grid)
            phases = [Phase(stiff, 10 * self.regularisation), Phase(self.iterations - stiff, self.regularisation)]
            fit = optimise(parameters, Objective(pairs, self.regulariser), phases, self.settling)
            return parameters.transform(*fit.state), fit


def _coarser_grid(grid: Grid, factor: float) -> Grid:
    """A grid over the same extent with fewer voxels, whose corner voxels have the same centres."""
    shape = tuple(min(n, max(_LEAST, round(n / factor))) for n in grid.shape)
    spacing = tuple(s * (n - 1) / max(m - 1, 1) for s, n, m in zip(grid.spacing, grid.shape, shape, strict=True))
    return Grid(shape, spacing, grid.device)


def _coarser(image: Tensor, grid: Grid) -> Tensor:
    for axis, n in enumerate(grid.shape, start=2):
        if n < image.shape[axis]:
            image = multiply_axis(_smoothing(n, image.shape[axis], image.device), image, axis)
    return image


@lru_cache(maxsize=32)
def _smoothing(new: int, old: int, device: torch.device) -> Tensor:
    """Weights ``[new, old]`` of a Gaussian of ``(ratio − 1) / 2`` voxels, at least one for each point."""
    sigma = max(0.5 * ((old - 1) / (new - 1) - 1), 0.3)
    place = torch.linspace(0, old - 1, new, device=device)
    nodes = torch.arange(old, device=device)
    return (-0.5 * ((place[:, None] - nodes[None]) / sigma).square()).softmax(dim=1)
