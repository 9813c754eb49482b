# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Atlas-ISTN whose ITN learns nothing from the registration: what joint training is compared with."""

from __future__ import annotations

from torch import Tensor

from atlas_istn.networks import AtlasISTN

__all__ = ["DetachedISTN"]


class DetachedISTN(AtlasISTN):
    """An `AtlasISTN` of the same weights; gradients of the deformation losses end at the ITN's prediction."""

    def register(self, subject: Tensor) -> tuple[Tensor, Tensor]:
        """As `AtlasISTN.register`, of the prediction as it is."""
        return super().register(subject.detach())
