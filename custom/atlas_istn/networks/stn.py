# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Spatial transformer network: from labelmaps to a velocity field and affine parameters (Atlas-ISTN, eq. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from ..spatial import identity_grid, num_affine_parameters
from .unet import CoarseHeads, EncoderDecoder

__all__ = ["SpatialTransformerNetwork"]


class SpatialTransformerNetwork(nn.Module):
    """Predicts velocity (at half resolution) and affine parameters from the concatenated foreground channels.

    The affine head pools the coarsest features together with their first moments (features weighted by position), so it
    can express a shift directly and takes any image size. Both heads start at (nearly) zero, so the first prediction is
    the identity.

    Args:
        spatial_dims: 2 or 3.
        in_channels: ``2 (Nc − 1)``.
        channels: features of each scale, finest (half resolution) first.
        norm: MONAI normalisation (a name, or a name and its arguments), or None as in the paper.
        coarse_heads: the velocity is the sum of what a head yields at each scale of the decoder, see
            `PairTransformerNetwork`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: Sequence[int] = (32, 64, 128),
        norm: str | Sequence[Any] | None = None,
        coarse_heads: bool = False,
    ) -> None:
        super().__init__()
        self.features = EncoderDecoder(spatial_dims, in_channels, channels, first_stride=2, norm=norm)
        self.velocity_head = Convolution(spatial_dims, channels[0], spatial_dims, conv_only=True)
        self.coarse_heads = CoarseHeads(spatial_dims, channels if coarse_heads else [], spatial_dims)
        self.affine_head = nn.Sequential(
            nn.Linear(channels[-1] * (1 + spatial_dims), 64),
            nn.ReLU(),
            nn.Linear(64, num_affine_parameters(spatial_dims)),
        )
        with torch.no_grad():
            for parameter in (*self.velocity_head.parameters(), *self.coarse_heads.parameters()):
                parameter.normal_(std=1e-5)
            for parameter in self.affine_head[-1].parameters():
                parameter.zero_()

    def forward(self, labelmaps: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity ``[B, dim, *half]`` in voxels of its grid and raw, unitless affine parameters ``[B, P]``."""
        scales = self.features.scales(labelmaps)
        velocity = self.coarse_heads(self.velocity_head(scales[-1]).float(), scales)
        return velocity, self.affine_head(_moments(scales[0])).float()


def _moments(features: Tensor) -> Tensor:
    """Mean and first moments ``[B, (1 + dim) C]`` of features ``[B, C, *shape]``, positions in [-1, 1]."""
    flat = features.flatten(2)
    moments = [flat.mean(dim=2)]
    grid = identity_grid(list(features.shape[2:]), features.device)[0]
    for axis in range(grid.shape[0]):
        position = grid[axis].flatten() * (2.0 / max(features.shape[2 + axis] - 1, 1)) - 1.0
        moments.append((flat * position).mean(dim=2))
    return torch.cat(moments, dim=1)
