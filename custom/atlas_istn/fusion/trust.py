# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Fusion by probabilities that a network predicts."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..errors import InputError
from ..networks import VoteNet
from .atlases import WarpedAtlases
from .base import Fused, LabelFusion

__all__ = ["PredictedTrust"]


class PredictedTrust:
    """Asks a `VoteNet` where each atlas is right, and hands the probabilities to a fusion that wants them.

    Args:
        network: stays as it is; its device is that of the atlases.
        fusion: `VoteNetPlus`, or `TrustedVote`.
    """

    def __init__(self, network: VoteNet, fusion: LabelFusion) -> None:
        self.network = network
        self.fusion = fusion

    def __call__(self, atlases: WarpedAtlases, mask: Tensor | None = None) -> Fused:
        """Fuse the labels of atlases, see `LabelFusion`.

        Raises:
            InputError: there are no images.
        """
        if atlases.images is None or atlases.target is None:
            raise InputError("a network that trusts atlases needs images of atlases and target; give them.")
        training = self.network.training
        self.network.eval()
        with torch.no_grad():
            trust = self.network.probabilities(atlases.target.float(), atlases.images.float())
        self.network.train(training)
        return self.fusion(replace(atlases, probabilities=trust), mask)
