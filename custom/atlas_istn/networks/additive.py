# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The small image transformer network of the ISTN paper's public code: additive skips, no normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from monai.networks.blocks import Convolution
from torch import Tensor, nn

__all__ = ["AdditiveNet"]


class AdditiveNet(nn.Module):
    """Encoder-decoder whose skip connections are added, not concatenated; 5,031 parameters in 2D by default.

    Full resolution: two convolutions down to the first scale's channels; a strided convolution to each further scale
    and a convolution there; back by transposed convolutions, each followed by the sum with what the encoder had, and a
    convolution. Three convolutions end in a linear output, of no fewer features than channels of the output: maps of
    eight structures cannot be made of two. No normalisation; leaky ReLU where the code has ReLU, since of two channels
    at the finest scale none may die.

    The image is standardised (mean 0, deviation 1) before the first layer and the weights start as He et al. have them,
    so what is learned does not depend on the unit of the intensities: the public code needs them at 0 to 255.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the output.
        channels: features of each scale, finest first.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int = 1, out_channels: int = 1, channels: Sequence[int] = (4, 8, 16)
    ) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, **options: object) -> nn.Module:
            return Convolution(spatial_dims, inputs, outputs, conv_only=True, **options)

        half = max(channels[0] // 2, 1)
        last = max(half, out_channels)
        scales = list(pairwise(channels))
        halving = {"strides": 2, "kernel_size": 2, "padding": 0}
        self.entry = nn.ModuleList([layer(in_channels, half), layer(half, channels[0])])
        self.down = nn.ModuleList(layer(fine, coarse, **halving) for fine, coarse in scales)
        self.encoder = nn.ModuleList(layer(coarse, coarse) for _, coarse in scales)
        self.up = nn.ModuleList(
            layer(coarse, fine, **halving, is_transposed=True, output_padding=0) for fine, coarse in reversed(scales)
        )
        # The finest scale has the layers of the exit in place of one more convolution.
        self.decoder = nn.ModuleList(layer(fine, fine) for fine, _ in reversed(scales[1:]))
        self.exit = nn.ModuleList([layer(channels[0], last), layer(last, last)])
        self.head = layer(last, out_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        # Near 0: after larger errors at the start the few channels are silent for long.
        for parameter in self.head.parameters():
            nn.init.normal_(parameter, std=0.05)

    def forward(self, image: Tensor) -> Tensor:
        """Output ``[B, out, *shape]`` of an image ``[B, in, *shape]``, whatever its size."""
        features = standardise(image)
        for convolution in self.entry:
            features = F.leaky_relu(convolution(features))
        skips: list[Tensor] = []
        for down, convolution in zip(self.down, self.encoder, strict=True):
            skips.append(features)
            features = F.leaky_relu(convolution(F.leaky_relu(down(features))))
        for index, up in enumerate(self.up):
            skip = skips.pop()
            features = _fit(F.leaky_relu(up(features)), skip) + skip
            if index < len(self.decoder):
                features = F.leaky_relu(self.decoder[index](features))
        for convolution in self.exit:
            features = F.leaky_relu(convolution(features))
        output: Tensor = self.head(features)
        return output


def standardise(image: Tensor) -> Tensor:
    """Shift and scale every channel of images ``[B, C, *shape]`` to mean 0 and standard deviation 1."""
    axes = tuple(range(2, image.ndim))
    centred = image - image.mean(dim=axes, keepdim=True)
    deviation: Tensor = centred.square().mean(dim=axes, keepdim=True).sqrt()
    return centred / deviation.clamp_min(1e-6)


def _fit(features: Tensor, like: Tensor) -> Tensor:
    """Repeat the last voxels of features where an odd size was halved."""
    missing = [n - m for n, m in zip(like.shape[2:], features.shape[2:], strict=True)]
    if not any(missing):
        return features
    padding = [width for n in reversed(missing) for width in (0, n)]
    return F.pad(features, padding, mode="replicate")
