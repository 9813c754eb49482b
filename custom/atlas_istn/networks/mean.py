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
    """

    def __init__(self, networks: Sequence[nn.Module], activation: nn.Module | None = None) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.activation = activation or nn.Softmax(dim=1)

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities ``[B, Nc, *shape]``, float32, of an image ``[B, C, *shape]``."""
        return torch.stack([self.activation(network(image).float()) for network in self.networks]).mean(dim=0)
