# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What all fusions have in common: where they fuse, and what becomes of their votes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from .atlases import WarpedAtlases

__all__ = ["Fused", "LabelFusion", "Votes", "tally"]

_EQUAL = 1e-6  # difference of two weights, of 1 altogether, that is rounding


class Votes(NamedTuple):
    """What a fusion says of M voxels.

    Attributes:
        posterior: share of each label, ``[M, L]``; sums to 1.
        weights: of each atlas, ``[M, N]``; sums to 1.
    """

    posterior: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Fused:
    """A fused labelmap, and how it came about.

    Attributes:
        labels: label values ``[*shape]``, of the type of the atlases' labels.
        agreement: share of the atlases that have this label there, ``[*shape]``.
        winner: index of the atlas with the largest weight among those that have this label, ``[*shape]``; −1 where
            nothing was fused, or where several weigh as much, as in a plurality vote.
        values: label values that occur, in ascending order, ``[L]``.
        voxels: flat indices of what was fused, ``[M]``.
        posterior: share of each of the `values` at these, ``[M, L]``.
    """

    labels: Tensor
    agreement: Tensor
    winner: Tensor
    values: Tensor
    voxels: Tensor
    posterior: Tensor

    def soft(self) -> Tensor:
        """Make soft labelmaps ``[L, *shape]``, in the order of `values`: one-hot where nothing was fused."""
        flat = (self.labels.flatten()[None] == self.values[:, None]).float()
        flat[:, self.voxels] = self.posterior.T.to(flat)
        return flat.reshape(-1, *self.labels.shape)


class LabelFusion(ABC):
    """Fuses the labels of warped atlases. A tie goes to the smaller label value, whatever the order of atlases."""

    def __call__(self, atlases: WarpedAtlases, mask: Tensor | None = None) -> Fused:
        """Fuse the labels of atlases.

        Args:
            atlases: warped onto the target.
            mask: voxels to fuse, ``[*shape]``; default those where the atlases disagree. Elsewhere the labels that
                most atlases have stand as they are.

        Returns:
            Labels and maps on the device of the atlases.

        Raises:
            InputError: the fusion needs images or probabilities that are missing, or the mask has another shape.
        """
        differs = atlases.disagreement()
        if mask is None:
            mask = differs
        elif mask.shape != differs.shape:
            raise InputError(f"mask of a fusion: expected shape {atlases.shape}, found {tuple(mask.shape)}.")
        values = _values(atlases.labels)
        voxels = mask.flatten().nonzero()[:, 0]
        votes = self.vote(atlases, voxels, values)
        flat = atlases.labels.flatten(1)
        labels = flat[0].clone()
        rest = (differs & ~mask.bool()).flatten().nonzero()[:, 0]
        labels[rest] = values[tally(flat[:, rest], values).argmax(dim=1)].to(labels)
        labels[voxels] = values[votes.posterior.argmax(dim=1)].to(labels)
        agreement = (flat == labels).float().mean(dim=0)
        winner = torch.full_like(labels, -1, dtype=torch.int16)
        carries = (flat[:, voxels] == labels[voxels]).T
        weights = votes.weights + carries
        best, place = weights.max(dim=1)
        alone = (weights > best[:, None] - _EQUAL).sum(dim=1) == 1
        winner[voxels] = torch.where(alone, place, -1).to(torch.int16)
        shape = atlases.shape
        return Fused(
            labels.reshape(shape), agreement.reshape(shape), winner.reshape(shape), values, voxels, votes.posterior
        )

    @abstractmethod
    def vote(self, atlases: WarpedAtlases, voxels: Tensor, values: Tensor) -> Votes:
        """Return the votes at voxels.

        Args:
            atlases: warped onto the target.
            voxels: flat indices, ``[M]``, ascending.
            values: all label values, ascending, ``[L]``.
        """


def tally(labels: Tensor, values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Add up the weights of the atlases for each label.

    Args:
        labels: label values ``[N, M]``.
        values: those that occur, ascending, ``[L]``.
        weights: ``[M, N]``; default the same for all.

    Returns:
        Shares ``[M, L]``.
    """
    classes = torch.bucketize(labels, values).T
    if weights is None:
        weights = torch.full(classes.shape, 1.0 / len(labels), device=labels.device)
    return weights.new_zeros(len(classes), len(values)).scatter_add_(1, classes, weights)


def _values(labels: Tensor) -> Tensor:
    """Label values that occur, ascending, ``[L]``; `torch.unique` of all voxels would sort them."""
    low, high = (int(end) for end in labels.aminmax())
    if high - low > 1 << 16:
        return labels.unique()
    counts = torch.bincount(labels.flatten().long() - low, minlength=high - low + 1)
    return counts.nonzero()[:, 0].to(labels) + low
