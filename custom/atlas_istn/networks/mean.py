# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Several segmentation networks as one: the mean of what they predict."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["MeanOfNetworks"]


class MeanOfNetworks(nn.Module):
    """Mean of the probabilities of several networks, which errs less than each of them where they err differently.

    Args:
        networks: networks from the image to ``[B, Nc, *shape]``, all of one shape.
        activation: makes probabilities of what each of them yields in float32; by default the softmax, of logits.
        each: in training yield what each network says, too, so that each learns for itself.
    """

    def __init__(self, networks: Sequence[nn.Module], activation: nn.Module | None = None, each: bool = False) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.activation = activation or nn.Softmax(dim=1)
        self.each = each

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities ``[B, Nc, *shape]``, float32, of an image ``[B, C, *shape]``.

        In training, with ``each`` or of networks with deep supervision, ``[B, 1 + N n, Nc, *shape]``: the mean, and
        behind it the n predictions of each network.
        """
        found = torch.stack([network(image).float() for network in self.networks], dim=1)
        if found.dim() == image.dim() + 1:
            found = found.unsqueeze(2)
        batch, networks, heads = found.shape[:3]
        found = self.activation(found.flatten(0, 2)).unflatten(0, [batch, networks, heads])
        mean = found[:, :, 0].mean(dim=1)
        if self.training and (self.each or heads > 1):
            return torch.cat([mean.unsqueeze(1), found.flatten(1, 2)], dim=1)
        return mean
