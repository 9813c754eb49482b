# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Giving a soft labelmap the topology that it should have, by a change as small as possible."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from .note import TopologyNote
from .signature import Signature
from .simple import march

__all__ = ["Restored", "pull_argmax", "repair_labelmap", "restore_labelmap"]

LEVELS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
"""How far a label's score is raised or lowered in search of a level set with the right topology."""

EVIDENCE = 0.05
"""Score below which no voxel is given to a label: nothing is invented where nothing was seen."""

MAX_TRIES = 300
"""Labelmaps that are looked at before the search gives up."""


class Restored(NamedTuple):
    """A labelmap, class indices ``[(D,) H, W]``, and what it took to give it its topology."""

    labelmap: np.ndarray
    note: TopologyNote


def restore_labelmap(scores: np.ndarray, target: Signature) -> Restored:
    """Labelmap of a soft labelmap, with the topology wanted wherever that can be reached on this grid.

    The argmax where it is right already; else the majority of the argmax on a finer grid; else `repair_labelmap`.

    Args:
        scores: soft channels ``[Nc, (D,) H, W]``.
        target: the topology.
    """
    plain = scores.argmax(axis=0).astype(np.int16)
    if not target.violations(plain):
        return Restored(plain, TopologyNote())
    # What lies far from every label plays no part: large images stay cheap.
    box = _box(plain)
    inner, labelmap = scores[(slice(None), *box)], plain.copy()
    for step, method in (("supersample", lambda: _vote(inner)), ("correction", lambda: repair_labelmap(inner, target))):
        labelmap[box] = method()
        if not target.violations(labelmap):
            return Restored(labelmap, TopologyNote(step, True, int((labelmap != plain).sum())))
    return Restored(labelmap, TopologyNote("correction", False, int((labelmap != plain).sum())))


def _box(labelmap: np.ndarray, margin: int = 6) -> tuple[slice, ...]:
    boxes = ndimage.find_objects((labelmap > 0).view(np.uint8))
    if not boxes:
        return (slice(None),) * labelmap.ndim
    return tuple(slice(max(side.start - margin, 0), side.stop + margin) for side in boxes[0])


def _vote(scores: np.ndarray, factor: int = 3) -> np.ndarray:
    """Most frequent argmax of the channels within each voxel, interpolated linearly on a grid `factor` times finer."""
    dim = scores.ndim - 1
    soft = torch.from_numpy(np.ascontiguousarray(scores, dtype=np.float32))[None]
    mode = "bilinear" if dim == 2 else "trilinear"
    fine = functional.interpolate(soft, scale_factor=factor, mode=mode, align_corners=False).argmax(dim=1)
    votes = functional.one_hot(fine, scores.shape[0]).movedim(-1, 1).float()
    pool = functional.avg_pool2d if dim == 2 else functional.avg_pool3d
    return pool(votes, factor)[0].argmax(dim=0).numpy().astype(np.int16)


def repair_labelmap(scores: np.ndarray, target: Signature) -> np.ndarray:
    """The labelmap with the right topology that is nearest to the argmax, as far as one is found.

    Surplus components are given to, and surplus holes taken from, whatever scores next best; where two labels touch
    that must not, one of them loses the layer to a third. What then is still wrong is looked for in the level sets of
    the scores, nearest level first: the labelmap marches towards the level set as far as topology allows, and of the
    pieces in which the two still differ (each is a bridge, a cut, a hole, an island or a contact) those are taken over
    that remove a defect. In the end the labelmap marches back towards the argmax, which keeps the topology and gives
    back every other voxel.

    Args:
        scores: soft channels ``[Nc, (D,) H, W]``.
        target: the topology.

    Returns:
        Class indices ``[(D,) H, W]``, int16. Check with `Signature.violations` whether the target was reached.
    """
    plain = scores.argmax(axis=0).astype(np.int16)
    search = _Search(scores, target, plain)
    for union in search.violated():
        if union in target.shapes:
            search.drop_surplus(union)
        elif union not in target.adjacent:
            search.part(union)
    # Where a channel is flat the level sets of the smoothed one still know which side is nearer.
    for sigma, level in itertools.product((0.0, 1.0), LEVELS):
        if search.exhausted:
            break
        smooth = ndimage.gaussian_filter(scores, (0, *[sigma] * plain.ndim), mode="nearest") if sigma else scores
        for union, sign in itertools.product(search.violated(), (1, -1)):
            raised = smooth.copy()
            raised[list(union)] += sign * level
            raised[1:][smooth[1:] < EVIDENCE] = -np.inf
            if not search.exhausted:
                search.approach(raised.argmax(axis=0).astype(np.int16))
    return march(search.labelmap, plain, scores, target.unions)


class _Search:
    """A labelmap on its way to a topology; it changes only where that leaves fewer defects."""

    def __init__(self, scores: np.ndarray, target: Signature, labelmap: np.ndarray) -> None:
        self.scores = scores
        self.target = target
        self.labelmap = labelmap
        self.defects = target.defects(labelmap)
        self.tries = 0

    @property
    def exhausted(self) -> bool:
        return self.defects == 0 or self.tries >= MAX_TRIES

    def violated(self) -> list[tuple[int, ...]]:
        return list(self.target.violations(self.labelmap))

    def propose(self, labelmap: np.ndarray) -> bool:
        self.tries += 1
        defects = self.target.defects(labelmap)
        better = defects < self.defects
        if better:
            self.labelmap, self.defects = labelmap, defects
        return better

    def drop_surplus(self, union: tuple[int, ...]) -> None:
        """Remove the components that are too many, then fill the holes (2D) or cavities (3D), those of least score."""
        others = tuple(label for label in range(len(self.scores)) if label not in union)
        wanted = self.target.shapes[union]
        enclosed = wanted.holes if self.labelmap.ndim == 2 else wanted.cavities
        self._keep_regions(union, others, wanted.components, self.labelmap.ndim)
        self._keep_regions(others, union, 1 + enclosed, 1)

    def _keep_regions(self, mine: tuple[int, ...], rivals: tuple[int, ...], number: int, connectivity: int) -> None:
        regions, count = _number_regions(np.isin(self.labelmap, mine), connectivity)
        stakes = self.scores[list(mine)].max(axis=0) - self.scores[list(rivals)].max(axis=0)
        order = np.argsort(ndimage.sum_labels(stakes, regions, np.arange(1, count + 1)))
        # At least one stays: a shape that is not wanted at all is no surplus, and the surroundings never are.
        surplus = np.isin(regions, 1 + order[: count - max(number, 1)])
        winners = np.asarray(rivals, dtype=np.int16)[self.scores[list(rivals)].argmax(axis=0)]
        self.propose(np.where(surplus, winners, self.labelmap))

    def part(self, pair: tuple[int, ...]) -> None:
        """Give the layer where two labels touch to a third: the layer of either label, and the best third."""
        full = ndimage.generate_binary_structure(self.labelmap.ndim, self.labelmap.ndim)
        for mine, other in (pair, pair[::-1]):
            layer = (self.labelmap == mine) & ndimage.binary_dilation(self.labelmap == other, full)
            fit = self.scores[:, layer].sum(axis=1)
            for third in np.argsort(-fit):
                if third not in pair:
                    self.propose(np.where(layer, np.int16(third), self.labelmap))

    def approach(self, level_set: np.ndarray) -> None:
        """Take over from a level set those pieces that remove a defect."""
        marched = march(self.labelmap, level_set, self.scores, self.target.unions)
        pieces, count = _number_regions(marched != level_set, marched.ndim)
        improved = False
        # The smallest pieces first: they are the least change.
        for piece in 1 + np.argsort(np.bincount(pieces.ravel(), minlength=count + 1)[1:], kind="stable"):
            base = self.labelmap if improved else marched
            if not self.exhausted:
                improved |= self.propose(np.where(pieces == piece, level_set, base))


def _number_regions(mask: np.ndarray, connectivity: int) -> tuple[np.ndarray, int]:
    numbered, count = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, connectivity))
    return numbered, int(count)


def pull_argmax(scores: np.ndarray, labelmap: np.ndarray, margin: float = 0.05) -> np.ndarray:
    """The nearest soft labelmap, in least squares, whose argmax is a given labelmap.

    Where the argmax differs, the wanted channel is raised and those above it are lowered to a common level (the sum
    stays the same), from which the wanted one then rises by half the margin and the others fall to match.

    Args:
        scores: soft channels ``[Nc, (D,) H, W]``.
        labelmap: class indices ``[(D,) H, W]``.
        margin: lead of the wanted channel where it had none.
    """
    moved = scores.argmax(axis=0) != labelmap
    result = scores.copy()
    channels, wanted = scores[:, moved], labelmap[moved].astype(int)
    columns = np.arange(channels.shape[1])
    own = channels[wanted, columns]
    rivals = channels.copy()
    rivals[wanted, columns] = -np.inf
    # The level: mean of the wanted channel and those rivals that lie above it, as in a projection on a simplex.
    ranked = -np.sort(-rivals, axis=0)[:-1]
    means = (own + np.cumsum(ranked, axis=0)) / np.arange(2, len(ranked) + 2)[:, None]
    level = means.max(axis=0)
    lowered = rivals >= level
    channels = np.where(lowered, level - margin / 2 / np.maximum(lowered.sum(axis=0), 1), channels)
    channels[wanted, columns] = level + margin / 2
    result[:, moved] = channels
    return result
