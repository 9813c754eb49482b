# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The learned atlas, registered to labels that come from elsewhere than its model's ITN."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..networks import AtlasISTN
from .base import SegmentationInferer
from .result import Result

__all__ = ["LearnedAtlas"]


class LearnedAtlas:
    """A trained Atlas-ISTN whose atlas is registered to given labels, and refined on them.

    So labels that several atlases have been fused to, which may have any number of pieces, get the topology of the one
    atlas, and the correspondence of its subjects.

    Args:
        network: stays as it is; its ITN does not run.
        inferer: the refinement, guarded or not.
    """

    def __init__(self, network: AtlasISTN, inferer: SegmentationInferer) -> None:
        self.network = network
        self.inferer = inferer

    def __call__(self, image: Tensor, labels: Tensor) -> Result:
        """Register the atlas.

        Args:
            image: ``[B, C, *shape]``.
            labels: soft labelmaps ``[B, Nc, *shape]`` that take the place of the ITN's prediction.
        """
        network: Any = _Given(self.network.eval(), labels)
        return self.inferer.infer(image, network)


class _Given:
    """A network whose prediction is given; all else is as it is."""

    def __init__(self, network: AtlasISTN, prediction: Tensor) -> None:
        self.network = network
        self.prediction = prediction

    def segment(self, _: Tensor) -> Tensor:
        return self.prediction

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)
