# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Correspondence through the atlas: inverse consistency, and maps from subject to subject (Atlas-ISTN, eq. 22-23)."""

from __future__ import annotations

from dataclasses import dataclass

from monai.metrics import compute_dice
from monai.networks import one_hot
from torch import Tensor

from . import Transform, identity_grid, sample_displacement, warp

__all__ = ["Consistency", "inverse_consistency", "map_points", "map_subject", "subject_to_subject"]


@dataclass(frozen=True)
class Consistency:
    """How well Φ and Φ⁻¹ of each case undo each other.

    Attributes:
        dice: IC-DSC of each foreground label, ``[B, Nc − 1]``: Dice between ``ya`` and ``(ya ∘ Φ⁻¹) ∘ Φ``, both after
            the argmax; NaN for a label that the atlas has nowhere.
        mice: masked inverse consistency error, ``[B]``: mean length of ``(G ∘ Φ⁻¹) ∘ Φ − G`` in voxels over the
            atlas's foreground, where ``G`` holds the voxel indices; NaN if the atlas has no foreground.
    """

    dice: Tensor
    mice: Tensor


def inverse_consistency(transform: Transform, atlas_labels: Tensor) -> Consistency:
    """IC-DSC and MICE (Atlas-ISTN, Table 6), by resampling on the subject's grid and back on the atlas's.

    Args:
        transform: B cases.
        atlas_labels: soft labelmap ya, ``[1, Nc, *shape]``, channel 0 the background.

    Returns:
        The figures of each case; 1 and 0 where the round trip changes nothing.
    """
    forward, inverse = transform.fixed_to_moving(), transform.moving_to_fixed()
    classes = atlas_labels.shape[1]
    labels = atlas_labels.argmax(dim=1, keepdim=True)
    returned = warp(warp(atlas_labels, inverse), forward).argmax(dim=1, keepdim=True)
    dice = compute_dice(
        one_hot(returned, classes), one_hot(labels, classes).expand(len(transform), *atlas_labels.shape[1:]), False
    )
    foreground = (labels[:, 0] > 0).float()
    error = _compose(forward, inverse).norm(dim=1) * foreground
    return Consistency(dice, error.flatten(1).sum(dim=1) / foreground.sum())


def subject_to_subject(source: Transform, target: Transform) -> Tensor:
    """Displacement of ``Φj ∘ Φi⁻¹``, which warps subject j (source) into the space of subject i (target).

    ``warp(z, u)`` with it is the ``(z ∘ Φj) ∘ Φi⁻¹`` of eq. (22)-(23), but interpolates z once instead of twice.

    Args:
        source: Φj, B cases, or one case for all targets.
        target: Φi, B cases, or one case for all sources; over the same grid.

    Returns:
        ``[B, dim, *shape]`` in voxels.
    """
    return _compose(target.moving_to_fixed(), source.fixed_to_moving())


def map_subject(image: Tensor, source: Transform, target: Transform) -> Tensor:
    """Bring an image or soft labelmap of subject j (source) into the space of subject i (target), eq. (22)-(23).

    Args:
        image: ``[B, C, *shape]`` on the model's grid of the source; of a labelmap the one-hot channels, whose argmax
            after this is the mapped labelmap.
        source: Φj.
        target: Φi.

    Returns:
        ``[B, C, *shape]`` on the model's grid of the target.
    """
    return warp(image, subject_to_subject(source, target))


def map_points(points: Tensor, source: Transform, target: Transform) -> Tensor:
    """Bring points of subject j (source) to the corresponding points of subject i (target): ``Φi(Φj⁻¹(p))``.

    Points move against the direction in which images are resampled, so this is the inverse of the map that
    :func:`subject_to_subject` resamples at.

    Args:
        points: ``[B, N, dim]``, voxel coordinates on the model's grid of the source, in array axis order.
        source: Φj.
        target: Φi.

    Returns:
        ``[B, N, dim]``, voxel coordinates on the model's grid of the target.
    """
    displacement = subject_to_subject(target, source)
    # A list of points is a grid that is one point wide along all axes but the first.
    grid = points.movedim(-1, 1)[(..., *[None] * (points.shape[-1] - 1))]
    return points + sample_displacement(displacement, grid).flatten(2).movedim(1, -1)


def _compose(first: Tensor, second: Tensor) -> Tensor:
    """Displacement of the map that moves points by ``first`` and then by ``second``, ``[B, dim, *shape]`` in voxels."""
    points = identity_grid(list(first.shape[2:]), first.device) + first
    if len(points) < len(second):
        points, first = points.expand_as(second), first.expand_as(second)
    return first + sample_displacement(second, points)
