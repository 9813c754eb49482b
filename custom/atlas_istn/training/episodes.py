# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Episodes of which a similarity network learns: a patch of the target, one that is like it and one that is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fusion.patches import box_sum, take_box
from ..fusion.similarity import take_patches
from ..networks.similarity import SimilarityNetwork

__all__ = ["Episodes", "draw_episodes", "label_likeness", "similarity_loss"]

_STILL = 1  # of the places where an atlas is looked at, the one that is not shifted


class Episodes(NamedTuple):
    """A batch of episodes.

    Attributes:
        queries: patches of the target, ``[m, C, *patch]``.
        supports: patches of an atlas, ``[m, 2, C, *patch]``, the one that is alike first.
    """

    queries: Tensor
    supports: Tensor


def label_likeness(first: Tensor, second: Tensor, classes: Sequence[int], radius: Sequence[int]) -> Tensor:
    """Compute the mean Dice of the classes in the patches about each voxel.

    A class counts where one of both patches has it; patches without any are not alike at all, since they show nothing.

    Args:
        first: label values ``[*shape]``.
        second: likewise.
        classes: label values that count, without the background.
        radius: of the patches, along each axis.

    Returns:
        ``[*shape]``, 0 to 1.
    """
    margin, origin, shape = tuple(radius), (0,) * first.ndim, tuple(first.shape)
    total, count = torch.zeros(shape, device=first.device), torch.zeros(shape, device=first.device)
    for value in classes:
        one, other = (take_box((labels == value).float(), origin, shape, margin) for labels in (first, second))
        sizes = box_sum(one + other, margin)
        total += torch.where(sizes > 0, 2 * box_sum(one * other, margin) / sizes.clamp_min(1.0), 0.0)
        count += sizes > 0
    return total / count.clamp_min(1.0)


def draw_episodes(
    target: Tensor,
    target_labels: Tensor,
    atlas: Tensor,
    atlas_labels: Tensor,
    classes: Sequence[int],
    radius: Sequence[int],
    count: int,
    generator: torch.Generator,
    likeness: tuple[float, float] = (0.9, 0.5),
    shifts: int = 12,
) -> Episodes | None:
    """Draw episodes along the borders of a target's structures (X-MAS, Algorithm 1 and eq. 9).

    The atlas is looked at where it is and at a number of random shifts by up to a patch's radius, since where it is
    registered well no patch would be unlike.

    Args:
        target: image ``[C, *shape]``, standardised.
        target_labels: label values ``[*shape]``.
        atlas: image of an atlas that was warped onto the target, likewise.
        atlas_labels: of it.
        classes: label values that count, without the background.
        radius: of the patches, along each axis.
        count: largest number of episodes.
        generator: of the draws, on the CPU.
        likeness: thresholds of `label_likeness`: above the first patches are alike, below the second they are not.
        shifts: number of shifts.

    Returns:
        Episodes, or None where there are none to be had.
    """
    steps = torch.stack([torch.randint(-r, r + 1, (shifts + _STILL,), generator=generator) for r in radius], dim=1)
    steps[0] = 0
    shifted = [tuple((-step).tolist()) for step in steps]
    axes = tuple(range(target_labels.ndim))
    found = torch.stack(
        [label_likeness(target_labels, atlas_labels.roll(step, axes), classes, radius) for step in shifted]
    ).flatten(1)
    alike, unlike = found > likeness[0], found < likeness[1]
    places = (_borders(target_labels, radius).flatten() & alike.any(dim=0) & unlike.any(dim=0)).nonzero()[:, 0]
    if not len(places):
        return None
    places = places[torch.randperm(len(places), generator=generator)[:count].to(places.device)]
    queries = take_patches(target, places, radius)
    supports = []
    for candidates in (alike, unlike):
        draw = torch.rand(len(shifted), len(places), generator=generator).to(places.device)
        chosen = torch.where(candidates[:, places], draw, -1.0).argmax(dim=0)
        flat = torch.stack(torch.unravel_index(places, tuple(target_labels.shape)))
        moved = flat + steps.to(places.device)[chosen].T
        strides = torch.tensor(target_labels.stride(), device=places.device)
        supports.append(take_patches(atlas, (moved * strides[:, None]).sum(dim=0), radius))
    return Episodes(queries, torch.stack(supports, dim=1))


def similarity_loss(network: SimilarityNetwork, episodes: Episodes) -> Tensor:
    """Cross-entropy of the similarities and the truth, that the first support is the one alike (X-MAS, eq. 8)."""
    scores = network(*episodes)
    return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device))


def _borders(labels: Tensor, radius: Sequence[int]) -> Tensor:
    """Voxels next to another label, ``[*shape]``, so far from the image's border that no shift leads beyond it."""
    found = torch.zeros_like(labels, dtype=torch.bool)
    for axis in range(labels.ndim):
        n = labels.shape[axis]
        differs = labels.narrow(axis, 1, n - 1) != labels.narrow(axis, 0, n - 1)
        found.narrow(axis, 1, n - 1).logical_or_(differs)
        found.narrow(axis, 0, n - 1).logical_or_(differs)
    inner = torch.zeros_like(found)
    inner[tuple(slice(r, n - r) for r, n in zip(radius, labels.shape, strict=True))] = True
    return found & inner
