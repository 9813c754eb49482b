# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Networks: U-Nets, spatial transformer networks, the joint Atlas-ISTN module and the pairwise ISTN."""

from __future__ import annotations

from .additive import AdditiveNet
from .atlas_istn import AtlasISTN, JointForward
from .locator import Location, Locator
from .mean import MeanOfNetworks
from .pair import PairISTN, PairTransformerNetwork
from .similarity import SimilarityNetwork
from .stn import SpatialTransformerNetwork
from .unet import EncoderDecoder, UNet
from .vote_net import VoteNet

__all__ = [
    "AdditiveNet",
    "AtlasISTN",
    "EncoderDecoder",
    "JointForward",
    "Location",
    "Locator",
    "MeanOfNetworks",
    "PairISTN",
    "PairTransformerNetwork",
    "SimilarityNetwork",
    "SpatialTransformerNetwork",
    "UNet",
    "VoteNet",
]
