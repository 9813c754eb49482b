# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What joint training is compared with: ITNs that learn nothing from the registration."""

from __future__ import annotations

from torch import Tensor

from atlas_istn.models.loading import ModelLoader
from atlas_istn.networks import AtlasISTN

__all__ = ["DetachedISTN", "GivenITN"]


class DetachedISTN(AtlasISTN):
    """An `AtlasISTN` of the same weights; gradients of the deformation losses end at the ITN's prediction."""

    def register(self, subject: Tensor) -> tuple[Tensor, Tensor]:
        """As `AtlasISTN.register`, of the prediction as it is."""
        return super().register(subject.detach())


class GivenITN:
    """In place of `InitialWeights`: takes a trained ITN, which stays as it is.

    Args:
        network: takes it.
        path: the model that has it.
    """

    atlas = False  # that is built anew

    def __init__(self, network: AtlasISTN, path: str) -> None:
        self.network = network
        self.path = path

    def __call__(self) -> None:
        """Load the ITN."""
        ModelLoader(self.path, self.network, part="itn.")()
        self.network.itn.requires_grad_(False)
