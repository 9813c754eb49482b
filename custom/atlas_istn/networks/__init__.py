# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Networks: the paper's U-Net, the spatial transformer network and the joint Atlas-ISTN module."""

from __future__ import annotations

from .atlas_istn import AtlasISTN, JointForward
from .mean import MeanOfNetworks
from .stn import SpatialTransformerNetwork
from .unet import EncoderDecoder, UNet

__all__ = ["AtlasISTN", "EncoderDecoder", "JointForward", "MeanOfNetworks", "SpatialTransformerNetwork", "UNet"]
