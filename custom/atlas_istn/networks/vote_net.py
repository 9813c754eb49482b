# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""A network that knows where the label of a warped atlas is right (VoteNet+, Ding et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..spatial import mixed_precision
from .layout import to_channels_last
from .unet import UNet

__all__ = ["VoteNet"]


class VoteNet(nn.Module):
    """Predicts for each voxel of a target and an atlas on its grid whether the atlas's label is right there.

    It sees no labels, so it does for any number of them.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of one image.
        channels: features of each scale, finest first.
        norm: MONAI normalisation (a name, or a name and its arguments), or None.
        amp: run in bfloat16.

    Attributes:
        scale: a of the calibration ``p = σ(a z + b)`` of the logits z (Platt 1999); 1 until calibrated.
        offset: b; 0 until calibrated.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 128),
        norm: str | Sequence[Any] | None = "instance",
        amp: bool = False,
    ) -> None:
        super().__init__()
        self.amp = amp
        self.features = UNet(spatial_dims, 2 * in_channels, 1, channels, norm)
        self.features.head.conv.reset_parameters()  # there is no background to start with
        to_channels_last(self, spatial_dims)
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))

    def forward(self, pair: Tensor) -> Tensor:
        """Logits ``[B, 1, *shape]`` of a target and an atlas ``[B, 2 C, *shape]``, as they are trained."""
        with mixed_precision(pair.device, self.amp):
            logits: Tensor = self.features(pair)
        return logits.float()

    def probabilities(self, target: Tensor, atlases: Tensor) -> Tensor:
        """Calibrated probabilities that atlases are right, ``[N, *shape]``; one atlas at a time.

        Args:
            target: ``[C, *shape]``.
            atlases: ``[N, C, *shape]``, warped onto it.
        """
        logits = torch.cat([self(torch.cat([target, atlas])[None])[:, 0] for atlas in atlases])
        return (self.scale * logits + self.offset).sigmoid()
