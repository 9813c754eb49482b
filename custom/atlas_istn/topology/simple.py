# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Simple points: voxels whose label can change without any change of topology."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

__all__ = ["is_simple", "march"]


class _Neighbourhood(NamedTuple):
    """Bit k of a number stands for neighbour k, the k-th of `offsets`."""

    offsets: np.ndarray
    full: tuple[int, ...]  # neighbours of each neighbour, full connectivity
    face: tuple[int, ...]  # neighbours of each neighbour, face connectivity, near the centre alone
    near: int  # those that differ from the centre in at most two coordinates
    faces: int  # those that share a face with the centre


@lru_cache
def _neighbourhood(dim: int) -> _Neighbourhood:
    offsets = np.array([step for step in itertools.product((-1, 0, 1), repeat=dim) if any(step)])
    distance = np.abs(offsets).sum(axis=1)
    apart = np.abs(offsets[:, None] - offsets[None])
    near = distance <= 2
    full = (apart.max(axis=2) == 1).tolist()
    face = ((apart.sum(axis=2) == 1) & near[None] & near[:, None]).tolist()

    def bits(flags: Iterable[bool]) -> int:
        return sum(1 << k for k, flag in enumerate(flags) if flag)

    return _Neighbourhood(
        offsets, tuple(map(bits, full)), tuple(map(bits, face)), bits(near.tolist()), bits((distance == 1).tolist())
    )


@lru_cache(maxsize=2**18)
def is_simple(code: int, dim: int) -> bool:
    """Whether a voxel can join or leave a shape without changing its components, holes and cavities.

    By the topological numbers of Bertrand and Malandain (Pattern Recognition Letters 15, 1994): among the neighbours,
    exactly one component of the shape, and exactly one of the background that shares a face with the voxel.

    Args:
        code: bit k set where neighbour k belongs to the shape; neighbours in the order of ``itertools.product`` over
            the steps (-1, 0, 1) along the axes, without the voxel itself.
        dim: 2 or 3.
    """
    around = _neighbourhood(dim)
    if len(_components(code, around.full)) != 1:
        return False
    outside = _components(~code & around.near, around.face)
    return sum(bool(component & around.faces) for component in outside) == 1


def _components(bits: int, adjacency: tuple[int, ...]) -> list[int]:
    components = []
    while bits:
        component, front = 0, bits & -bits
        while front:
            component |= front
            reached = 0
            while front:
                lowest = front & -front
                reached |= adjacency[lowest.bit_length() - 1]
                front ^= lowest
            front = reached & bits & ~component
        components.append(component)
        bits &= ~component
    return components


def march(start: np.ndarray, goal: np.ndarray, scores: np.ndarray, unions: Iterable[tuple[int, ...]]) -> np.ndarray:
    """Move a labelmap towards another, voxel by voxel, without changing the topology of any union of labels.

    A voxel takes the label of the goal when it is simple for every union that it thereby joins or leaves; those that
    gain most in score come first. Ends when no voxel can move: an exact homotopy, as in topology-preserving level sets
    and fast marching (Bazin and Pham, IEEE TMI 26, 2007).

    Args:
        start: class indices ``[(D,) H, W]``.
        goal: class indices, same shape.
        scores: ``[Nc, (D,) H, W]``, how well each class suits each voxel.
        unions: the labels, and labels taken together, whose topology is kept.

    Returns:
        Class indices, same shape and type as ``start``.
    """
    dim = start.ndim
    labels = np.pad(start, 1)  # beyond the image is background
    goals = np.pad(goal, 1)
    flat, wanted = labels.reshape(-1), goals.reshape(-1)
    waiting = np.flatnonzero(flat != wanted)
    if not len(waiting):
        return start.copy()
    strides = np.array(labels.strides) // labels.itemsize
    steps = _neighbourhood(dim).offsets @ strides
    padded = np.pad(scores, [(0, 0)] + [(1, 1)] * dim).reshape(len(scores), -1)
    gain = padded[wanted[waiting], waiting] - padded[flat[waiting], waiting]
    priority = dict(zip(waiting.tolist(), (-gain).tolist(), strict=True))
    members = _Members(unions, len(scores))
    powers = 2.0 ** np.arange(len(steps))
    heap = [(cost, voxel) for voxel, cost in priority.items()]
    heapq.heapify(heap)
    queued = set(priority)
    while heap:
        _, voxel = heapq.heappop(heap)
        queued.discard(voxel)
        old, new = int(flat[voxel]), int(wanted[voxel])
        around = voxel + steps
        codes = members.changed(old, new).take(flat.take(around), axis=1) @ powers
        if not all(is_simple(int(code), dim) for code in codes.tolist()):
            continue
        flat[voxel] = new
        del priority[voxel]
        for neighbour in around.tolist():
            if neighbour in priority and neighbour not in queued:
                queued.add(neighbour)
                heapq.heappush(heap, (priority[neighbour], neighbour))
    return labels[(slice(1, -1),) * dim].copy()


class _Members:
    """Which classes belong to which of the unions."""

    def __init__(self, unions: Iterable[tuple[int, ...]], num_classes: int) -> None:
        inside = [np.isin(np.arange(num_classes), union) for union in unions]
        self.inside = np.array(inside, dtype=float).reshape(-1, num_classes)
        self.known: dict[tuple[int, int], np.ndarray] = {}

    def changed(self, old: int, new: int) -> np.ndarray:
        """``[unions, Nc]`` of those that a voxel joins or leaves where its class changes, 1 where a class belongs."""
        if (old, new) not in self.known:
            self.known[old, new] = self.inside[self.inside[:, old] != self.inside[:, new]]
        return self.known[old, new]
