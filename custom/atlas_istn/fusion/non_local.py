# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Votes of the most similar patches in the neighbourhood (Coupé et al. 2011)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from .atlases import WarpedAtlases
from .base import LabelFusion, Votes, tally
from .patches import BLOCK, PatchSimilarity, blocks, box_sum, per_axis_radius, standardise, take_box

__all__ = ["NonLocalVote"]

_LEAST = 1e-3  # of the squared deviation of a patch: a distance below it is none


class NonLocalVote(LabelFusion):
    """Votes of the patches about a voxel of all atlases that are most similar, ``w = exp(−d² / (min d² + ε))``.

    Each votes with the label in its middle. d² is the squared difference of the patches; it wants images of one
    contrast.

    Args:
        patch_radius: in voxels; one for all axes, or one for each.
        search_radius: largest shift along each axis, likewise.
        most: number of patches that vote.
        block: voxels that are worked on at a time; the working memory grows with it, and with the search.
    """

    def __init__(
        self,
        patch_radius: int | Sequence[int] = 2,
        search_radius: int | Sequence[int] = 2,
        most: int = 7,
        block: int = BLOCK,
    ) -> None:
        self.patch_radius = patch_radius
        self.search_radius = search_radius
        self.most = most
        self.block = block

    def vote(self, atlases: WarpedAtlases, voxels: Tensor, values: Tensor) -> Votes:
        """Return the weighted share of each label."""
        target, images = standardise(atlases)
        dim, count = len(atlases.shape), len(atlases)
        radius, search = (per_axis_radius(r, dim) for r in (self.patch_radius, self.search_radius))
        margin = tuple(r + s for r, s in zip(radius, search, strict=True))
        shifts = list(itertools.product(*(range(-s, s + 1) for s in search)))
        weights = torch.zeros(len(voxels), count, device=images.device)
        posterior = torch.empty(len(voxels), len(values), device=images.device)
        for block in blocks(voxels, atlases.shape, self.block):
            fixed, moving = (take_box(image, block.low, block.high, margin) for image in (target, images))
            labels = take_box(atlases.labels, block.low, block.high, search)
            similarity = PatchSimilarity(fixed, moving, radius, search, squares=True)
            inner = box_sum(similarity.fixed.square(), radius).mean(dim=0)
            found = torch.stack([(inner - similarity.at(shift)).flatten(1)[:, block.places()] for shift in shifts])
            distances, chosen = found.flatten(0, 1).clamp_min(0.0).topk(min(self.most, len(found) * count), 0, False)
            least = distances.amin(dim=0, keepdim=True)
            votes = torch.exp(-distances / (least + _LEAST * inner.flatten()[block.places()] + 1e-12)).T
            votes = votes / votes.sum(dim=1, keepdim=True)
            of_atlas, step = chosen.T % count, chosen.T // count
            centres = block.places(search)[:, None] + _flat(shifts, labels.shape[1:], labels.device)[step]
            voted = labels.flatten(1)[of_atlas, centres]
            posterior[block.rows] = tally(voted.T, values, votes)
            weights[block.rows] = weights[block.rows].scatter_add_(1, of_atlas, votes)
        return Votes(posterior, weights)


def _flat(shifts: Sequence[Sequence[int]], shape: Sequence[int], device: torch.device) -> Tensor:
    """Differences of flat indices of shifts in an image, ``[S]``."""
    flat = torch.zeros(len(shifts), dtype=torch.long, device=device)
    for axis, steps in enumerate(zip(*shifts, strict=True)):
        flat = flat * shape[axis] + torch.tensor(steps, device=device)
    return flat
