# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The one protocol of our inferers, in the dress that MONAI's engines, MONAI Label and MONAI Deploy expect."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from torch import Tensor

from ..networks import AtlasISTN
from ..spatial import Transform
from .result import Course, Result

__all__ = ["Refined", "Refiner", "SegmentationInferer", "Start", "plain"]


@dataclass(frozen=True)
class Start:
    """Where a refinement of a batch begins.

    Attributes:
        prediction: the ITN's output ``[B, Nc, *shape]``.
        velocity: ``[B, dim, *half]`` in voxels of its grid.
        parameters: raw affine parameters ``[B, P]``.
        adapted: whether the ITN has been adapted to the case, ``[B]``; None: to none.
    """

    prediction: Tensor
    velocity: Tensor
    parameters: Tensor
    adapted: Tensor | None = None

    def __getitem__(self, case: slice) -> Start:
        return Start(self.prediction[case], self.velocity[case], self.parameters[case])

    @classmethod
    def cat(cls, starts: Sequence[Start], adapted: Tensor) -> Start:
        """Join batches."""
        return cls(
            torch.cat([start.prediction for start in starts]),
            torch.cat([start.velocity for start in starts]),
            torch.cat([start.parameters for start in starts]),
            adapted,
        )


@dataclass(frozen=True)
class Refined:
    """Transforms of a batch that are refined to a target, and how that went."""

    transform: Transform
    course: Course


class SegmentationInferer(Inferer, ABC):
    """From images to soft labelmaps; `infer` has everything, a call as of any MONAI inferer the labelmaps alone."""

    @abstractmethod
    def infer(self, image: Tensor, network: AtlasISTN) -> Result:
        """Segment images ``[B, C, *shape]``, in every gradient mode; network and inferer stay as they are."""

    def __call__(self, inputs: Tensor, network: AtlasISTN, *_: Any, **__: Any) -> Tensor:
        """Return the soft segmentation ``[B, Nc, *shape]``, of the type of the images and with their metadata."""
        return cast(Tensor, convert_to_dst_type(self.infer(inputs, network).segmentation, inputs)[0])


class Refiner(Protocol):
    """An inferer that can refine from any start to any target; what guards and ensembles are built around."""

    @property
    def mode(self) -> str:
        """What is refined: ``"field"`` or ``"weights"``."""

    @property
    def iterations(self) -> int:
        """Largest number of iterations; without any the 1-pass is the result."""

    @property
    def regularisation(self) -> float:
        """λ*."""

    def infer(self, image: Tensor, network: AtlasISTN) -> Result:
        """Segment images, as `SegmentationInferer.infer`."""

    def fit(self, network: AtlasISTN, start: Start, target: Tensor, regularisation: float | None = None) -> Refined:
        """Register the atlas to soft labelmaps ``[B, Nc, *shape]``; a regularisation replaces the refiner's own λ*."""


def plain(image: Tensor) -> Tensor:
    """Copy of images as a plain tensor that autograd may use.

    On a `MetaTensor` every operation of a loop takes the way through ``__torch_function__``, several times its cost;
    and what was made under ``inference_mode`` cannot enter autograd.
    """
    return torch.as_tensor(image).as_subclass(Tensor).detach().clone()
