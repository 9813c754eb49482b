# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Refinement from several starts: where the results differ, the registration is uncertain."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from monai.inferers import Inferer
from monai.networks.layers import GaussianFilter
from torch import Tensor

from ..errors import InputError
from ..networks import AtlasISTN
from .refine import Refinement, RefinementInferer

__all__ = ["EnsembleInferer", "EnsembleRefinement"]


@dataclass(frozen=True)
class EnsembleRefinement(Refinement):
    """A `Refinement` with what its other starts yield.

    Attributes:
        ensemble: mean of the refined soft labelmaps of all members, ``[B, Nc, *shape]``. It need not have the atlas's
            topology: it is for uncertainty; the segmentation is that of the first member.
    """

    ensemble: Tensor = field(kw_only=True)

    def outputs(self) -> dict[str, Tensor]:
        """As `Refinement.outputs`, with ``ensemble``."""
        return {**super().outputs(), "ensemble": self.ensemble}


class EnsembleInferer(Inferer):
    """Refines the registration from the 1-pass and from starts near it.

    The first member is the refinement itself, and its result is the result. The other members start from the 1-pass
    plus a smooth random velocity and a random affine step. The steps depend on the seed and on the member alone, so
    neither the order of cases nor the batch changes anything.

    Args:
        inferer: the refinement, in the mode ``"field"``; in the other mode the start is not free.
        members: number of starts; 1 is the refinement alone.
        velocity_step: standard deviation of the random velocity, in voxels of its grid.
        affine_step: standard deviation of the random affine parameters: translation as a fraction of half the extent,
            rotation in radians, logarithm of scale.
        sigma: smoothness of the random velocity, in voxels of its grid.
        seed: seed of the steps.

    Raises:
        InputError: no members, or several in the mode ``"weights"``.
    """

    def __init__(
        self,
        inferer: RefinementInferer,
        members: int = 1,
        velocity_step: float = 1.0,
        affine_step: float = 0.05,
        sigma: float = 3.0,
        seed: int = 0,
    ) -> None:
        if members < 1:
            raise InputError(f"ensemble must be at least 1, got {members}.")
        if members > 1 and inferer.mode != "field":
            raise InputError('ensemble: several starts need refine_mode "field". Set it, or ensemble to 1.')
        super().__init__()
        self.inferer = inferer
        self.members = members
        self.velocity_step = velocity_step
        self.affine_step = affine_step
        self.sigma = sigma
        self.seed = seed

    def __call__(self, inputs: Tensor, network: AtlasISTN, *_: Any, **__: Any) -> Tensor:
        """Refined soft segmentation ``[B, Nc, *shape]`` of images ``[B, C, *shape]``."""
        return self.refine(inputs, network).segmentation

    def refine(self, inputs: Tensor, network: AtlasISTN) -> Refinement:
        """As `RefinementInferer.refine`; an `EnsembleRefinement` if there are several members."""
        begin = time.perf_counter()
        result = self.inferer.refine(inputs, network)
        if self.members == 1:
            return result
        with torch.inference_mode(False), torch.no_grad():
            velocity, parameters = network.register(result.prediction)
            total = result.segmentation.clone()
            for member in range(1, self.members):
                steps = self._steps(member, velocity, parameters)
                start = result.target, velocity + steps[0], parameters + steps[1]
                total += self.inferer.refine(inputs, network, start).segmentation
        seconds = (time.perf_counter() - begin) / len(inputs)
        return EnsembleRefinement(**{**vars(result), "seconds": seconds}, ensemble=total / self.members)

    def _steps(self, member: int, velocity: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Random velocity ``[1, dim, *half]`` and affine parameters ``[1, P]`` of a member, the same for every case."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + member)
        noise = torch.randn(1, *velocity.shape[1:], generator=generator)
        smooth = GaussianFilter(velocity.ndim - 2, self.sigma)(noise)
        step = torch.randn(1, parameters.shape[1], generator=generator)
        return (
            (self.velocity_step * smooth / smooth.std()).to(velocity),
            (self.affine_step * step).to(parameters),
        )
