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
from .patches import BLOCK, Block, blocks, take_box

__all__ = ["LearnedVote", "take_patches"]

_TOGETHER = 256  # patches in a batch of the network; of many more each takes twice as long, beyond a processor's cache


class LearnedVote(LabelFusion):
    """Votes weighted by a `SimilarityNetwork` (X-MAS, eq. 6 and 7).

    Args:
        network: stays as it is; its device is that of the atlases.
        most: so many most similar atlases vote, all alike, and no others, as the authors' code has it; 0 for all
            atlases by their weights, as the paper has it.
        block: voxels of a tile whose patches are cut out at a time; the working memory grows with it.
    """

    def __init__(self, network: SimilarityNetwork, most: int = 0, block: int = BLOCK) -> None:
        self.network = network
        self.most = most
        self.block = block

    def vote(self, atlases: WarpedAtlases, voxels: Tensor, values: Tensor) -> Votes:
        """Return the weighted share of each label."""
        if atlases.images is None or atlases.target is None:
            raise InputError("a fusion by patches needs the images of atlases and target; give them, or choose a vote.")
        images = self.network.standardise(torch.cat([atlases.target[None], atlases.images]))
        radius, portion = self.network.radius, max(1, _TOGETHER // len(images))
        weights = torch.empty(len(voxels), len(atlases), device=images.device)
        training = self.network.training
        self.network.eval()
        with torch.no_grad():
            for block in blocks(voxels, atlases.shape, self.block):
                box = take_box(images, block.low, block.high, radius).flatten(2)
                places = patch_places(block, radius, radius)
                for rows, inside in zip(block.rows.split(portion), places.split(portion), strict=True):
                    patches = box[:, :, inside].movedim(2, 0).unflatten(-1, self.network.patch)
                    weights[rows] = self._weights(self.network(patches[:, 0], patches[:, 1:]))
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
