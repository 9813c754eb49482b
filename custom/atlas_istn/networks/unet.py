# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The paper's encoder-decoder (Fig. 3): strided convolutions down, linear interpolation up, ReLU, skip connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from torch import Tensor, nn

__all__ = ["CoarseHeads", "EncoderDecoder", "UNet"]


class EncoderDecoder(nn.Module):
    """Feature extractor shared by the ITN (full resolution) and the STN (first convolution of stride 2).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        channels: features of each scale, finest first.
        first_stride: stride of the first convolution; the decoder ends at that resolution.
        norm: MONAI normalisation (a name, or a name and its arguments), or None as in the paper.
        decoder: without one the features are the coarsest ones.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: Sequence[int] = (16, 32, 64, 128),
        first_stride: int = 1,
        norm: str | Sequence[Any] | None = None,
        decoder: bool = True,
    ) -> None:
        super().__init__()
        self.mode = "bilinear" if spatial_dims == 2 else "trilinear"

        def block(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
            return Convolution(spatial_dims, inputs, outputs, strides=stride, act="relu", norm=norm, adn_ordering="NA")

        inputs = [in_channels, *channels[:-1]]
        strides = [first_stride] + [2] * (len(channels) - 1)
        self.encoder = nn.ModuleList(
            nn.Sequential(block(i, o, stride), block(o, o))
            for i, o, stride in zip(inputs, channels, strides, strict=True)
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(block(coarse + fine, fine), block(fine, fine))
            for coarse, fine in zip(channels[:0:-1], channels[-2::-1], strict=True)
            if decoder
        )
        # He initialisation: without normalisation PyTorch's default lets the signal fade over the many layers.
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.constant_(module.bias, 0.0)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[B, channels[0], *shape / first_stride]`` and the coarsest features ``[B, channels[-1], ...]``."""
        scales = self.scales(image)
        return scales[-1], scales[0]

    def scales(self, image: Tensor) -> list[Tensor]:
        """Features of each scale of the decoder, the coarsest first; without a decoder these alone."""
        skips: list[Tensor] = []
        features = image
        for scale in self.encoder:
            features = scale(features)
            skips.append(features)
        scales = [skips.pop()]
        for scale in self.decoder:
            skip = skips.pop()
            # Upsampling to the skip's own size lets any image size pass, divisible by the strides or not.
            features = F.interpolate(features, size=skip.shape[2:], mode=self.mode, align_corners=True)
            features = scale(torch.cat([features, skip], dim=1))
            scales.append(features)
        return scales


class CoarseHeads(nn.Module):
    """Adds to a field what a head yields at each coarser scale of an `EncoderDecoder`, on the grid of the field.

    Args:
        spatial_dims: 2 or 3.
        channels: features of each scale, finest first, as of the `EncoderDecoder`; without any nothing is added.
        components: channels of the field.
    """

    def __init__(self, spatial_dims: int, channels: Sequence[int], components: int) -> None:
        super().__init__()
        self.mode = "bilinear" if spatial_dims == 2 else "trilinear"
        self.heads = nn.ModuleList(
            Convolution(spatial_dims, count, components, conv_only=True) for count in channels[:0:-1]
        )

    def forward(self, field: Tensor, scales: list[Tensor]) -> Tensor:
        """Sum ``[B, components, *grid]``, in the precision of the field.

        Args:
            field: ``[B, components, *grid]``.
            scales: features, the coarsest first, as of `EncoderDecoder.scales`.
        """
        size = field.shape[2:]
        for number, head in enumerate(self.heads):
            coarse = head(scales[number]).to(field.dtype)
            field = field + F.interpolate(coarse, size, mode=self.mode, align_corners=True)
        return field


class UNet(nn.Module):
    """The paper's image transformer network: an `EncoderDecoder` with a linear output layer.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels Nc of the labelmap, background included.
        channels: features of each scale, finest first.
        norm: MONAI normalisation (a name, or a name and its arguments), or None as in the paper.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (16, 32, 64, 128),
        norm: str | Sequence[Any] | None = None,
    ) -> None:
        super().__init__()
        self.features = EncoderDecoder(spatial_dims, in_channels, channels, norm=norm)
        self.head = Convolution(spatial_dims, channels[0], out_channels, kernel_size=1, conv_only=True)
        # Start at "all background": under a squared error a random start of the output costs epochs to unlearn.
        with torch.no_grad():
            self.head.conv.weight.mul_(0.01)
            self.head.conv.bias.zero_()[0] = 1.0

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``[B, Nc, *shape]`` of an image ``[B, C, *shape]``."""
        return self.head(self.features(image)[0])
