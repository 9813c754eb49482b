# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Adaptation of an ITN that wavers, as under a foreign contrast, to the image (Guo et al., 2307.00676)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..networks import AtlasISTN
from ..registration.objective import Objective, Pair
from ..spatial import mixed_precision
from .base import Start
from .target import confidence, disagreement

__all__ = ["Adaptation"]

Look = Callable[[Tensor, AtlasISTN], Start]
"""What a network makes of images in one pass."""

_NORMALISING = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.GroupNorm, nn.LayerNorm),
)


@dataclass(frozen=True)
class Adaptation:
    """Moves the weights of the ITN's normalisation, on a copy, until its prediction agrees better with the moved atlas.

    Adam minimises the squared error between the prediction, brought to the atlas by the 1-pass, and the atlas; STN and
    atlas stay as they are. Each case is adapted by itself, so neither the batch nor the order of cases matters. It
    costs a forward and a backward pass of the ITN for each step, of the cases concerned.

    Attributes:
        steps: of Adam; 0: never.
        rate: of Adam.
        disagreement: a case is adapted where 1 − Dice of the labels of ITN and 1-pass is above this: where both agree
            the ITN knows better than the atlas,
        confidence: and where the mean probability of the ITN's labels is below this, as under a foreign contrast. An
            ITN that is sure is mostly right, as of an anatomy in an unusual pose, which the 1-pass may miss.

    Raises:
        InputError: a value is out of range; or, in use, the ITN has no such weights.
    """

    steps: int
    rate: float
    disagreement: float
    confidence: float

    def __post_init__(self) -> None:
        limits = (self.disagreement, self.confidence)
        if self.steps < 0 or self.rate <= 0 or not all(0.0 <= limit <= 1.0 for limit in limits):
            raise InputError(
                "refine_adaptation: expected steps from 0, a rate above 0, disagreement and confidence from 0 to 1, "
                f"found {self.steps}, {self.rate:g}, {self.disagreement:g} and {self.confidence:g}."
            )

    def __call__(self, network: AtlasISTN, image: Tensor, start: Start, look: Look, amp: bool = False) -> Start:
        """Look again at the cases concerned, each by an ITN that is adapted to it.

        Args:
            network: stays as it is.
            image: ``[B, C, *shape]``.
            start: what the network makes of these images.
            look: makes it.
            amp: run the convolutions in bf16.
        """
        if not self.steps:
            return start
        concerned = self.concerned(network, start)
        starts = []
        for number, far in enumerate(concerned.tolist()):
            one = slice(number, number + 1)
            starts.append(look(image[one], self.adapted(network, image[one], amp)) if far else start[one])
        return Start.cat(starts, concerned)

    def concerned(self, network: AtlasISTN, start: Start) -> Tensor:
        """Whether each case is to be adapted, ``[B]``."""
        moved = network.transform(start.velocity, start.parameters).to_fixed(network.atlas_labels)
        far = disagreement(start.prediction, moved) > self.disagreement
        return far & (confidence(start.prediction) < self.confidence)

    def adapted(self, network: AtlasISTN, image: Tensor, amp: bool = False) -> AtlasISTN:
        """Return a copy of a network whose ITN has been adapted to one image ``[1, C, *shape]``."""
        with torch.enable_grad():
            network = copy.deepcopy(network).requires_grad_(False)
            weights = _normalisation(network.itn)
            optimiser = torch.optim.Adam(weights, lr=self.rate)
            for _ in range(self.steps):
                with mixed_precision(image.device, amp):
                    prediction = network.segment(image)
                    found = network.register(prediction)
                pair = Pair(network.atlas_labels, prediction, backward=True)
                optimiser.zero_grad()
                Objective([pair])(network.transform(*found)).misfit.sum().backward()
                optimiser.step()
        return network


def _normalisation(itn: nn.Module) -> list[Tensor]:
    """The weights of the layers that normalise features."""
    layers = [layer for layer in itn.modules() if isinstance(layer, _NORMALISING)]
    weights: list[Tensor] = [weight for layer in layers for weight in layer.parameters(recurse=False)]
    if not weights:
        raise InputError("refine_adaptation: the ITN has no normalisation with weights. Set its steps to 0.")
    for weight in weights:
        weight.requires_grad_()
    return weights
