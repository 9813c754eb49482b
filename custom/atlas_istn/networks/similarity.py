# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""A network that knows which patches of other images show the same anatomy as one of the target (X-MAS, Sec. 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn

__all__ = ["PatchEncoder", "SimilarityNetwork"]

_KERNELS = (5, 3, 3)
_SMALLEST = 6  # voxels along an axis that are worth halving


class PatchEncoder(nn.Module):
    """Embeds patches: three convolutions, with halving along every axis that is long enough between them.

    Args:
        patch: voxels along each axis, odd numbers.
        channels: features of the three convolutions.
        in_channels: of the image.
        norm: MONAI normalisation (a name, or a name and its arguments), or None. None that depends on a batch: at test
            time the patches of a batch are neighbours.
    """

    def __init__(
        self,
        patch: Sequence[int],
        channels: Sequence[int] = (8, 16, 32),
        in_channels: int = 1,
        norm: str | Sequence[Any] | None = "instance",
    ) -> None:
        super().__init__()
        dim, size = len(patch), list(patch)
        pooling: Any = nn.MaxPool2d if dim == 2 else nn.MaxPool3d
        layers: list[nn.Module] = []
        inputs = [in_channels, *channels[:-1]]
        for stage, (kernel, before, after) in enumerate(zip(_KERNELS, inputs, channels, strict=True)):
            if stage:
                factors = [2 if n >= _SMALLEST else 1 for n in size]
                layers.append(pooling(factors))
                size = [n // factor for n, factor in zip(size, factors, strict=True)]
            kernels = [min(kernel, n - (n % 2 == 0)) for n in size]
            layers.append(
                Convolution(dim, before, after, kernel_size=kernels, act="relu", norm=norm, adn_ordering="NA")
            )
        self.layers = nn.Sequential(*layers, nn.Flatten())

    def forward(self, patches: Tensor) -> Tensor:
        """Features ``[m, F]`` of patches ``[m, C, *patch]``."""
        features: Tensor = self.layers(patches)
        return features


class SimilarityNetwork(nn.Module):
    """Compares a patch of the target with patches of atlases, whose contrast may be another (X-MAS, eq. 7).

    Args:
        patch: voxels along each axis, odd numbers.
        channels: see `PatchEncoder`.
        in_channels: of an image.
        shared: one encoder for target and atlases; else one for each, as in the paper.
        squared: the mean squared distance of the features, in place of the Euclidean one of the paper.
        norm: see `PatchEncoder`.
    """

    def __init__(
        self,
        patch: Sequence[int],
        channels: Sequence[int] = (8, 16, 32),
        in_channels: int = 1,
        shared: bool = False,
        squared: bool = False,
        norm: str | Sequence[Any] | None = "instance",
    ) -> None:
        super().__init__()
        self.patch = tuple(patch)
        self.squared = squared
        self.of_target = PatchEncoder(patch, channels, in_channels, norm)
        self.of_atlas = self.of_target if shared else PatchEncoder(patch, channels, in_channels, norm)

    @property
    def radius(self) -> tuple[int, ...]:
        """Voxels of a patch on either side of its centre."""
        return tuple(n // 2 for n in self.patch)

    def forward(self, queries: Tensor, supports: Tensor) -> Tensor:
        """Minus the distances ``[m, S]``, of which a softmax over S makes the similarities.

        Args:
            queries: patches of the target, ``[m, C, *patch]``.
            supports: patches of atlases, ``[m, S, C, *patch]``.
        """
        features = self.of_target(queries)[:, None]
        others = self.of_atlas(supports.flatten(0, 1)).reshape(len(supports), -1, features.shape[-1])
        if self.squared:
            return -(features - others).square().mean(dim=-1)
        return -torch.linalg.vector_norm(features - others, dim=-1)

    @staticmethod
    def standardise(images: Tensor) -> Tensor:
        """Images ``[N, C, *shape]``, each channel of each with zero mean and unit deviation."""
        axes = tuple(range(2, images.ndim))
        images = images.float()
        deviation = images.std(dim=axes, keepdim=True).clamp_min(1e-12)
        return (images - images.mean(dim=axes, keepdim=True)) / deviation
