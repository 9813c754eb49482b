# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What a registration minimises: the errors of pairs of images under a transform, and the regulariser of its field.

Every system of the papers is a choice of pairs: Atlas-ISTN compares the atlas with a prediction (eq. 11, 12, 17-19), a
pairwise ISTN two maps of its ITN, multi-atlas refinement two images and two predictions at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..spatial import Transform, resample
from .regularisers import mean_squared_gradient
from .similarity import squared_error

__all__ = ["Objective", "Pair", "Regulariser", "Similarity", "Terms"]

Similarity = Callable[[Tensor, Tensor], Tensor]
"""Error per case ``[B]`` of two images ``[B, C, *shape]``."""
Regulariser = Callable[[Tensor, Sequence[float]], Tensor]
"""Penalty per case ``[B]`` of a displacement ``[B, dim, *grid]`` in voxels, and the proportions of these."""


@dataclass(frozen=True)
class Pair:
    """Two images that a transform shall make alike.

    Attributes:
        moving: ``[B or 1, C, *shape]``; one image for all cases, such as the atlas, or one for each.
        fixed: ``[B or 1, C, *shape]``.
        similarity: error of a resampled and a still image.
        weight: factor of the error.
        backward: the fixed image is resampled in the space of the moving one (eq. 12), in place of the other way (11).
    """

    moving: Tensor
    fixed: Tensor
    similarity: Similarity = squared_error
    weight: float = 1.0
    backward: bool = False


class Terms(NamedTuple):
    """The parts of an objective, each per case ``[B]``.

    Attributes:
        errors: of each pair, before its weight; in a window, its mean there.
        misfit: their weighted sum.
        penalty: of the field; its weight is the business of whoever minimises.
    """

    errors: tuple[Tensor, ...]
    misfit: Tensor
    penalty: Tensor


class Objective:
    """``Σ weight · error + λ · penalty`` of transforms, for a batch of independent cases.

    A direction in which no pair is compared is not integrated. The penalty is the mean over the directions that are:
    φ and φ⁻¹ are equally smooth, and this costs no integration.

    Args:
        pairs: what shall be alike.
        regulariser: penalty of the displacement of the non-rigid part on its own grid; a map without one has none.
        window: range of voxels of the fixed images along each axis outside of which all pairs agree: it saves what it
            leaves out, and changes nothing for errors that are means over voxels. For pairs that are not backward.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        regulariser: Regulariser = mean_squared_gradient,
        window: Sequence[slice] | None = None,
    ) -> None:
        self.pairs = tuple(pairs)
        self.regulariser = regulariser
        self.window = None
        if window is not None and not any(pair.backward for pair in pairs):
            box = (slice(None), slice(None), *window)
            share = [math.prod(pair.fixed[box].shape[2:]) / math.prod(pair.fixed.shape[2:]) for pair in pairs]
            self.pairs = tuple(
                replace(pair, fixed=pair.fixed[box].contiguous(), weight=pair.weight * part)
                for pair, part in zip(pairs, share, strict=True)
            )
            self.window = window

    def __call__(self, transform: Transform) -> Terms:
        """The terms of a batch of transforms between fixed and moving images."""
        penalties: list[Tensor] = []
        grids: dict[bool, Tensor] = {}
        for backward in sorted({pair.backward for pair in self.pairs}):
            deformation = transform.deformation(inverse=not backward)
            grids[backward] = transform.sampling_grid(backward, deformation, self.window)
            if deformation is not None:
                penalties.append(self.regulariser(deformation, transform.spacing))
        errors = tuple(_error(pair, grids[pair.backward]) for pair in self.pairs)
        misfit = torch.stack([pair.weight * error for pair, error in zip(self.pairs, errors, strict=True)]).sum(dim=0)
        penalty = torch.stack(penalties).mean(dim=0) if penalties else torch.zeros_like(misfit)
        return Terms(errors, misfit, penalty)


def _error(pair: Pair, grid: Tensor) -> Tensor:
    resampled, still = (pair.fixed, pair.moving) if pair.backward else (pair.moving, pair.fixed)
    return pair.similarity(resample(resampled, grid), still)
