# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Episodes of which a similarity network learns: a patch of the target, one that is like it and one that is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from monai.transforms import RandomizableTransform
from torch import Tensor, nn

from ..errors import InputError
from ..fusion.patches import box_sum, take_box
from ..fusion.similarity import take_patches
from ..networks.similarity import SimilarityNetwork
from .losses import check_finite
from .warped_pairs import WarpedPair

__all__ = [
    "EpisodeDraws",
    "Episodes",
    "SimilarityLoss",
    "collate_episodes",
    "draw_episodes",
    "label_borders",
    "label_likeness",
    "prepare_episodes",
]

_TRIES = 10  # draws of shifts, before a pair is given up
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
    places = (label_borders(target_labels, radius).flatten() & alike.any(dim=0) & unlike.any(dim=0)).nonzero()[:, 0]
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


class EpisodeDraws(RandomizableTransform):
    """Draws episodes of a `WarpedPair`, see `draw_episodes`.

    Args:
        network: says how large patches are.
        classes: label values that count, without the background.
        count: largest number of episodes.
        likeness: see `draw_episodes`.

    Raises:
        InputError: on calling, if a pair has no patches that are alike, or none that are not, along its borders.
    """

    def __init__(
        self,
        network: SimilarityNetwork,
        classes: Sequence[int],
        count: int = 32,
        likeness: tuple[float, float] = (0.9, 0.5),
    ) -> None:
        super().__init__()
        self.network = network
        self.classes = list(classes)
        self.count = count
        self.likeness = tuple(likeness)

    def __call__(self, pair: WarpedPair) -> dict[str, Tensor]:
        """Return ``{"image"}`` the queries and ``{"supports"}``, see `Episodes`."""
        images = [self.network.standardise(image[None])[0] for image in (pair.target, pair.atlas)]
        labels = [labels.long() for labels in (pair.target_labels, pair.atlas_labels)]
        for _ in range(_TRIES):
            generator = torch.Generator().manual_seed(int(self.R.randint(2**31)))
            found = draw_episodes(
                images[0],
                labels[0],
                images[1],
                labels[1],
                self.classes,
                self.network.radius,
                self.count,
                generator,
                (self.likeness[0], self.likeness[1]),
            )
            if found:
                return {"image": found.queries, "supports": found.supports}
        raise InputError(
            f"{pair.case}: along the borders of the target no patches of the atlas are alike (Dice above "
            f"{self.likeness[0]}), or none are unlike (below {self.likeness[1]}). Register better, or change "
            "episode_likeness."
        )


def collate_episodes(items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join the episodes of several pairs: ``{"image", "supports"}`` and ``"label"``, which support is alike: 0."""
    joined = {name: torch.cat([item[name] for item in items]) for name in ("image", "supports")}
    return {**joined, "label": torch.zeros(len(joined["image"]), dtype=torch.long)}


def prepare_episodes(
    batch: Mapping[str, Tensor], device: torch.device | str | None = None, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, Tensor, tuple[Tensor], dict[str, Any]]:
    """Take apart a batch for MONAI's engines: input, target, and what else the network gets."""
    queries, label, supports = (
        batch[name].to(device, non_blocking=non_blocking) for name in ("image", "label", "supports")
    )
    return queries, label, (supports,), {}


class SimilarityLoss(nn.Module):
    """Cross-entropy of the similarities (X-MAS, eq. 8).

    Attributes:
        epoch: current epoch, set by the trainer's schedule.
        terms: of the last call, for logging.
        schedules: what changes from epoch to epoch: nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0
        self.terms: dict[str, Tensor] = {}
        self.schedules: dict[str, float] = {}

    def forward(self, scores: Tensor, label: Tensor) -> Tensor:
        """Loss of scores ``[m, S]``, of which that of the support ``label`` ``[m]`` should be the highest."""
        loss = F.cross_entropy(scores, label)
        self.terms = {"similarity": loss.detach()}
        check_finite(self.terms, self.epoch)
        return loss


def label_borders(labels: Tensor, radius: Sequence[int]) -> Tensor:
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
