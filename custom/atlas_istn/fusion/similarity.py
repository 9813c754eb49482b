# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Votes weighted by the similarity of patches across contrasts, as a network has learned it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..networks.similarity import SimilarityNetwork
from .atlases import WarpedAtlases
from .base import LabelFusion, Votes, tally
from .joint import patch_places
from .patches import Block, take_box

__all__ = ["LearnedVote", "take_patches"]

_VOXELS = 256  # whose patches are compared at a time


class LearnedVote(LabelFusion):
    """Votes weighted by a `SimilarityNetwork` (X-MAS, eq. 6 and 7).

    Args:
        network: stays as it is; its device is that of the atlases.
        most: so many most similar atlases vote, all alike, and no others, as the authors' code has it; 0 for all
            atlases by their weights, as the paper has it.
        block: voxels whose patches are compared at a time; the working memory grows with it.
    """

    def __init__(self, network: SimilarityNetwork, most: int = 0, block: int = _VOXELS) -> None:
        self.network = network
        self.most = most
        self.block = block

    def vote(self, atlases: WarpedAtlases, voxels: Tensor, values: Tensor) -> Votes:
        """Return the weighted share of each label."""
        if atlases.images is None or atlases.target is None:
            raise InputError("a fusion by patches needs the images of atlases and target; give them, or choose a vote.")
        target, images = (self.network.standardise(image) for image in (atlases.target[None], atlases.images))
        weights = torch.empty(len(voxels), len(atlases), device=images.device)
        training = self.network.training
        self.network.eval()
        with torch.no_grad():
            for rows in torch.arange(len(voxels), device=voxels.device).split(self.block):
                queries = take_patches(target[0], voxels[rows], self.network.radius)
                supports = [take_patches(image, voxels[rows], self.network.radius) for image in images]
                weights[rows] = self._weights(self.network(queries, torch.stack(supports, dim=1)))
        self.network.train(training)
        return Votes(tally(atlases.labels.flatten(1)[:, voxels], values, weights), weights)

    def _weights(self, similarity: Tensor) -> Tensor:
        """Weights ``[m, N]`` of minus the distances."""
        if not self.most or self.most >= similarity.shape[1]:
            return similarity.softmax(dim=1)
        chosen = similarity.topk(self.most, dim=1).indices
        return torch.zeros_like(similarity).scatter_(1, chosen, 1.0 / self.most)


def take_patches(image: Tensor, voxels: Tensor, radius: Sequence[int]) -> Tensor:
    """Cut patches out of an image; beyond its border it continues with its value there.

    Args:
        image: ``[C, *shape]``.
        voxels: flat indices of their centres, ``[m]``.
        radius: of the patches, along each axis.

    Returns:
        ``[m, C, *patch]``.
    """
    shape = tuple(image.shape[1:])
    origin = (0,) * len(shape)
    block = Block(voxels, origin, shape, torch.stack(torch.unravel_index(voxels, shape)))
    patches = take_box(image, origin, shape, radius).flatten(1)[:, patch_places(block, radius, radius)]
    return patches.movedim(0, 1).reshape(len(voxels), len(image), *(2 * r + 1 for r in radius))
