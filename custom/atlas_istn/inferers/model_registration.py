# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Registration of atlases to an image by what a trained model knows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from ..errors import InputError
from ..networks import AtlasISTN, PairISTN
from ..spatial import Transform, compose_displacements
from .base import SegmentationInferer
from .pair import PairInferer

__all__ = ["ModelRegistration", "NetworkRegistration", "ThroughAtlas"]


class ModelRegistration(Protocol):
    """Registers atlases to an image in one go."""

    def __call__(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Register images ``[n, C, *shape]`` to one ``[1, C, *shape]``, on the grid of the model.

        Returns:
            Displacement ``[n, dim, *shape]`` in voxels, which resamples the first ones onto the other.
        """


class NetworkRegistration:
    """Registers atlases by the network of a trained registration of pairs, and by its refinement where it has one.

    Args:
        network: stays as it is.
        inferer: of the pairs.
        backward: the network's fixed images are of the atlases' modality, and its moving ones of the image's.
        limits: least and greatest intensity that the network was trained with; None for any.
    """

    def __init__(
        self,
        network: PairISTN,
        inferer: PairInferer,
        backward: bool = False,
        limits: Sequence[float] | None = None,
    ) -> None:
        self.network = network
        self.inferer = inferer
        self.backward = backward
        self.limits = limits

    def __call__(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Register images, see `ModelRegistration`."""
        images = [moving, fixed.expand(len(moving), *fixed.shape[1:])]
        if self.limits is not None:
            images = [image.clamp(*self.limits) for image in images]
        pairs = torch.cat(images[::-1] if self.backward else images, dim=1)
        transform = self.inferer.infer(pairs, self.network.eval()).transform
        return transform.fixed_to_moving() if self.backward else transform.moving_to_fixed()


class ThroughAtlas:
    """Registers atlases through the atlas that an Atlas-ISTN has learned, so that no pair is registered.

    With Φ from the learned atlas to an image, an image A is resampled onto another one T by A ∘ Φ_A ∘ Φ_T⁻¹. Each image
    is registered once: the maps of the atlases are kept, ``dim`` values a voxel and atlas.

    Args:
        network: stays as it is.
        inferer: its 1-pass or refinement.

    Raises:
        InputError: the model is an ITN alone, whose atlas goes nowhere.
    """

    def __init__(self, network: AtlasISTN, inferer: SegmentationInferer) -> None:
        if network.stn is None:
            raise InputError("atlas_registration: expected an Atlas-ISTN that registers its atlas, found an ITN alone.")
        self.network = network
        self.inferer = inferer
        self._kept: dict[str, Tensor] = {}

    def __call__(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Register images, see `ModelRegistration`."""
        onto = self._transform(fixed).moving_to_fixed()
        from_atlas = torch.cat([self._from_atlas(one[None]) for one in moving])
        return compose_displacements(onto.expand_as(from_atlas), from_atlas)

    def _from_atlas(self, image: Tensor) -> Tensor:
        """Displacement of Φ, which resamples an image ``[1, C, *shape]`` in the space of the learned atlas."""
        key = hashlib.sha256(image.cpu().contiguous().numpy().data).hexdigest()
        if key not in self._kept:
            self._kept[key] = self._transform(image).fixed_to_moving()
        return self._kept[key]

    def _transform(self, image: Tensor) -> Transform:
        return cast(Transform, self.inferer.infer(image, self.network.eval()).transform)
