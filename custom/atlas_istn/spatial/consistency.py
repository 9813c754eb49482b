# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Inverse consistency of the maps between subjects and atlas (Atlas-ISTN, Table 6)."""

from __future__ import annotations

from dataclasses import dataclass

from monai.metrics import compute_dice
from monai.networks import one_hot
from torch import Tensor

from . import Transform, compose_displacements, label_indices, warp

__all__ = ["Consistency", "inverse_consistency"]


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
    labels = label_indices(atlas_labels, keepdim=True)
    returned = label_indices(warp(warp(atlas_labels, inverse), forward), keepdim=True)
    dice = compute_dice(
        one_hot(returned, classes), one_hot(labels, classes).expand(len(transform), *atlas_labels.shape[1:]), False
    )
    foreground = (labels[:, 0] > 0).float()
    error = compose_displacements(forward, inverse).norm(dim=1) * foreground
    return Consistency(dice, error.flatten(1).sum(dim=1) / foreground.sum())
