# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Patches of images: sums over them, how alike they are, and the work on voxels in blocks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from .atlases import WarpedAtlases

__all__ = ["BLOCK", "Block", "PatchSimilarity", "blocks", "box_sum", "per_axis_radius", "standardise", "take_box"]

BLOCK = 4096
"""Voxels that are worked on at a time, by default."""
_FLAT = (
    1e-4  # of the image's variance times the voxels of a patch: what varies less is flat, and correlates with nothing
)


class Block(NamedTuple):
    """Some of the voxels of a list, close to each other.

    Attributes:
        rows: where they stand in the list, ``[m]``.
        low: first voxel along each axis of the box that holds them.
        high: voxel behind the last.
        coordinates: of them in that box, ``[dim, m]``.
    """

    rows: Tensor
    low: tuple[int, ...]
    high: tuple[int, ...]
    coordinates: Tensor

    def places(self, margin: Sequence[int] | None = None) -> Tensor:
        """Flat indices ``[m]`` in the box, or in one that is larger by a margin on both sides of each axis."""
        margin = margin or [0] * len(self.low)
        flat = torch.zeros_like(self.coordinates[0])
        for axis, (low, high, more) in enumerate(zip(self.low, self.high, margin, strict=True)):
            flat = flat * (high - low + 2 * more) + self.coordinates[axis] + more
        return flat


def blocks(voxels: Tensor, shape: Sequence[int], size: int) -> Iterator[Block]:
    """Divide voxels among tiles of an image.

    Args:
        voxels: flat indices ``[M]``.
        shape: spatial shape of the image.
        size: voxels of a tile.
    """
    if not len(voxels):
        return
    side = max(1, round(size ** (1 / len(shape))))
    coordinates = torch.stack(torch.unravel_index(voxels, tuple(shape)))
    tile = torch.zeros_like(voxels)
    for axis, n in enumerate(shape):
        tile = tile * math.ceil(n / side) + coordinates[axis] // side
    order = tile.argsort(stable=True)
    for rows in order.split(tile[order].unique_consecutive(return_counts=True)[1].tolist()):
        inside = coordinates[:, rows]
        low = inside.amin(dim=1)
        ends = torch.stack([low, inside.amax(dim=1) + 1]).tolist()
        yield Block(rows, tuple(ends[0]), tuple(ends[1]), inside - low[:, None])


def take_box(image: Tensor, low: Sequence[int], high: Sequence[int], margin: Sequence[int]) -> Tensor:
    """Cut a box with a margin out of ``[..., *shape]``; beyond its border an image continues with its value there."""
    first = image.ndim - len(low)
    for axis, (begin, end, more) in enumerate(zip(low, high, margin, strict=True)):
        n = image.shape[first + axis]
        if begin - more >= 0 and end + more <= n:
            image = image.narrow(first + axis, begin - more, end - begin + 2 * more)
        else:
            index = torch.arange(begin - more, end + more, device=image.device).clamp(0, n - 1)
            image = image.index_select(first + axis, index)
    return image.contiguous()


def box_sum(image: Tensor, radius: Sequence[int]) -> Tensor:
    """Sum over boxes of ``2 r + 1`` voxels along the last axes; these get shorter by ``2 r``.

    By adding shifted images: no digits cancel as in differences of cumulative sums, and small radii are as fast.
    """
    first = image.ndim - len(radius)
    for axis, r in enumerate(radius):
        length = image.shape[first + axis] - 2 * r
        total = image.narrow(first + axis, 0, length)
        if r:
            total = total.clone()
        for shift in range(1, 2 * r + 1):
            total += image.narrow(first + axis, shift, length)
        image = total
    return image


def per_axis_radius(radius: int | Sequence[int], dim: int) -> tuple[int, ...]:
    """Return a radius in voxels for each axis.

    Raises:
        InputError: another number of them, or a negative one.
    """
    per_axis = (radius,) * dim if isinstance(radius, int) else tuple(radius)
    if len(per_axis) != dim or min(per_axis) < 0:
        raise InputError(f"radius of patches: expected one or {dim} numbers of voxels from 0 up, found {radius}.")
    return per_axis


def standardise(atlases: WarpedAtlases) -> tuple[Tensor, Tensor]:
    """Return target and images with the mean and deviation of each channel of the target as zero and one.

    Raises:
        InputError: there are no images.
    """
    if atlases.images is None or atlases.target is None:
        raise InputError("a fusion by patches needs the images of atlases and target; give them, or choose a vote.")
    target, images = atlases.target.float(), atlases.images.float()
    axes = tuple(range(1, target.ndim))
    mean, deviation = target.mean(dim=axes, keepdim=True), target.std(dim=axes, keepdim=True).clamp_min(1e-12)
    return (target - mean) / deviation, (images - mean) / deviation


class PatchSimilarity:
    """How alike the patches of a still box and of shifted ones are, for every voxel of the box at once.

    Args:
        fixed: the target, ``[C, *box + 2 (radius + search)]``, about one standard deviation in contrast.
        moving: the atlases, ``[N, C, *box + 2 (radius + search)]``.
        radius: of a patch, along each axis.
        search: largest shift along each axis.
        squares: minus the sum of squared differences in place of the correlation, mean over channels.
    """

    def __init__(
        self, fixed: Tensor, moving: Tensor, radius: Sequence[int], search: Sequence[int], squares: bool = False
    ) -> None:
        self.radius, self.search, self.squares = tuple(radius), tuple(search), squares
        self.moving = moving
        still = [slice(s, n - s) for s, n in zip(self.search, fixed.shape[1:], strict=True)]
        self.fixed = fixed[(slice(None), *still)]
        self.box = [n - 2 * r for r, n in zip(self.radius, self.fixed.shape[1:], strict=True)]
        self.sums = box_sum(self.moving, self.radius)
        self.square_sums = box_sum(self.moving.square(), self.radius)
        if not squares:
            self.size = math.prod(2 * r + 1 for r in self.radius)
            self.fixed_sums = box_sum(self.fixed, self.radius) / self.size
            flat = _FLAT * self.size
            variance = self.square_sums - self.sums.square() / self.size
            self.scale = torch.where(variance > flat, variance.clamp_min(flat).rsqrt(), 0.0)
            variance = box_sum(self.fixed.square(), self.radius) - self.fixed_sums.square() * self.size
            self.fixed_scale = torch.where(variance > flat, variance.clamp_min(flat).rsqrt(), 0.0)

    def at(self, shift: Sequence[int]) -> Tensor:
        """Return the similarity ``[N, *box]`` of patches of the atlases that are shifted by some voxels."""
        begins = [s + step for s, step in zip(self.search, shift, strict=True)]
        window = _window(begins, self.fixed.shape[1:])
        product = box_sum(self.moving[window] * self.fixed, self.radius)
        inner = _window(begins, self.box)
        if self.squares:
            return (2.0 * product - self.square_sums[inner]).mean(dim=1)
        product -= self.sums[inner] * self.fixed_sums
        return (product * self.scale[inner] * self.fixed_scale).mean(dim=1)

    def best(self) -> Tensor:
        """Return the shift ``[dim, N, *box]`` of the most similar patch of each atlas; the shortest wins a tie."""
        shifts = sorted(
            itertools.product(*(range(-s, s + 1) for s in self.search)), key=lambda shift: sum(n * n for n in shift)
        )
        best = self.at(shifts[0])
        chosen = torch.zeros(best.shape, dtype=torch.int16, device=best.device)
        for index, shift in enumerate(shifts[1:], start=1):
            similarity = self.at(shift)
            better = similarity > best
            torch.maximum(best, similarity, out=best)
            chosen.masked_fill_(better, index)
        return torch.tensor(shifts, device=best.device).T[:, chosen.long()]


def _window(begins: Sequence[int], lengths: Sequence[int]) -> tuple[slice, ...]:
    spatial = [slice(begin, begin + length) for begin, length in zip(begins, lengths, strict=True)]
    return (slice(None), slice(None), *spatial)
