# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Refinement from several starts: where the results differ, the registration is uncertain."""

from __future__ import annotations

import dataclasses
import time

import torch
from monai.networks.layers import GaussianFilter
from torch import Tensor

from ..errors import InputError
from ..networks import AtlasISTN
from .base import Refiner, SegmentationInferer, Start
from .result import Result

__all__ = ["EnsembleInferer"]


class EnsembleInferer(SegmentationInferer):
    """Refines the registration from the 1-pass and from starts near it.

    The first member is the inferer itself, and its result is the result. The other members start from the 1-pass plus a
    smooth random velocity and a random affine step, and are refined to the target that the first one ended with. The
    steps depend on the seed and on the member alone, so neither the order of cases nor the batch changes anything.

    Args:
        inferer: the refinement. With several members it has to refine fields: of weights the start is not free.
        members: number of starts; 1 is the inferer alone.
        velocity_step: standard deviation of the random velocity, in voxels of its grid.
        affine_step: standard deviation of the random affine parameters: translation as a fraction of half the extent,
            rotation in radians, logarithm of scale.
        sigma: smoothness of the random velocity, in voxels of its grid.
        seed: seed of the steps.

    Raises:
        InputError: no members, or several of an inferer that refines weights.
    """

    def __init__(
        self,
        inferer: Refiner,
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

    def infer(self, image: Tensor, network: AtlasISTN) -> Result:
        """Segment a batch as the inferer does; with several members the result has their mean as `ensemble`."""
        begin = time.perf_counter()
        result = self.inferer.infer(image, network)
        if self.members == 1 or result.prediction is None or result.course is None:
            return result
        with torch.inference_mode(False), torch.no_grad():
            velocity, parameters = network.register(result.prediction)
            total = result.segmentation.clone()
            for member in range(1, self.members):
                steps = self._steps(member, velocity, parameters)
                start = Start(result.prediction, velocity + steps[0], parameters + steps[1])
                refined = self.inferer.fit(network, start, result.course.target)
                total += refined.transform.to_fixed(network.atlas_labels)
        seconds = (time.perf_counter() - begin) / len(image)
        return dataclasses.replace(result, seconds=seconds, ensemble=total / self.members)

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
