# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Transforms of the preprocessing that MONAI lacks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from scipy.ndimage import gaussian_filter

__all__ = ["AntiAliasd", "FillBackgroundd"]


class AntiAliasd(MapTransform):
    """Smooth an image along the axes that a following `Spacingd` is about to coarsen.

    The standard deviation is ``(ratio − 1) / 2`` voxels of the fine grid, as in scikit-image; finer or equal target
    spacings leave the axis alone.

    Args:
        keys: images ``[C, *shape]`` (MetaTensor).
        pixdim: target spacing in millimetres along the array axes.
    """

    def __init__(self, keys: KeysCollection, pixdim: Sequence[float], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.pixdim = np.asarray(pixdim, dtype=float)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Smooth every keyed image."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            ratio = self.pixdim / np.asarray(image.pixdim)[: len(self.pixdim)]
            sigma = np.maximum(ratio - 1.0, 0.0) / 2.0
            if (sigma > 0.05).any():
                # Not MONAI's GaussianSmooth, which takes what lies beyond the border for zero and darkens the edge.
                voxels = gaussian_filter(image.numpy(), [0.0, *sigma], mode="nearest")
                result[key] = convert_to_dst_type(voxels, image)[0]
        return result


class FillBackgroundd(MapTransform):
    """Set channel 0 of soft labelmaps to what the other channels leave of 1; padding had left all channels at 0."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Complete every keyed labelmap ``[Nc, *shape]``."""
        result = dict(data)
        for key in self.key_iterator(result):
            labels = result[key].clone()
            labels[0] = (1.0 - torch.as_tensor(labels)[1:].sum(dim=0)).clamp(0.0, 1.0)
            result[key] = labels if isinstance(labels, MetaTensor) else torch.as_tensor(labels)
        return result
