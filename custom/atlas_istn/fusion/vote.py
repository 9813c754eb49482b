# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Fusions in which each atlas votes for its label at a voxel: all alike, by trust, or by how alike the patches are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from .atlases import WarpedAtlases
from .base import LabelFusion, Votes, tally
from .patches import BLOCK, PatchSimilarity, blocks, per_axis_radius, standardise, take_box

__all__ = ["LocallyWeightedVote", "PluralityVote", "TrustedVote"]

_LEAST = 1e-6  # weight of a patch that is not alike: where none is, all count the same


class PluralityVote(LabelFusion):
    """The label that most atlases have (MAS-refine: PV)."""

    def vote(self, atlases: WarpedAtlases, voxels: Tensor, values: Tensor) -> Votes:
        """Return the share of atlases that have each label."""
        labels = atlases.labels.flatten(1)[:, voxels]
        weights = torch.full((len(voxels), len(atlases)), 1.0 / len(atlases), device=labels.device)
        return Votes(tally(labels, values), weights)


class TrustedVote(LabelFusion):
    """The label that most of the trusted atlases have; where none is trusted, most of all (VoteNet, Ding et al. 2019).

    Args:
        threshold: probability above which an atlas is trusted.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def vote(self, atlases: WarpedAtlases, voxels: Tensor, values: Tensor) -> Votes:
        """Return the share of trusted atlases that have each label."""
        if atlases.probabilities is None:
            raise InputError("a vote of trusted atlases needs probabilities of theirs; give them, or choose another.")
        trusted = (atlases.probabilities.flatten(1)[:, voxels] > self.threshold).T.float()
        trusted += trusted.sum(dim=1, keepdim=True) == 0
        weights = trusted / trusted.sum(dim=1, keepdim=True)
        return Votes(tally(atlases.labels.flatten(1)[:, voxels], values, weights), weights)


class LocallyWeightedVote(LabelFusion):
    """Votes weighted by the correlation of patches, w = max(NCC, 0)^p (Artaechevarria et al. 2009).

    Args:
        patch_radius: of the patch, in voxels; one for all axes, or one for each.
        power: p.
        block: voxels that are worked on at a time; the working memory grows with it.
    """

    def __init__(self, patch_radius: int | Sequence[int] = 2, power: float = 4.0, block: int = BLOCK) -> None:
        self.patch_radius = patch_radius
        self.power = power
        self.block = block

    def vote(self, atlases: WarpedAtlases, voxels: Tensor, values: Tensor) -> Votes:
        """Return the weighted share of each label."""
        target, images = standardise(atlases)
        radius = per_axis_radius(self.patch_radius, len(atlases.shape))
        still = (0,) * len(radius)
        weights = torch.empty(len(voxels), len(atlases), device=images.device)
        for block in blocks(voxels, atlases.shape, self.block):
            fixed, moving = (take_box(image, block.low, block.high, radius) for image in (target, images))
            correlation = PatchSimilarity(fixed, moving, radius, still).at(still).flatten(1)[:, block.places()]
            weights[block.rows] = correlation.T.clamp_min(0.0) ** self.power + _LEAST
        weights /= weights.sum(dim=1, keepdim=True)
        return Votes(tally(atlases.labels.flatten(1)[:, voxels], values, weights), weights)
