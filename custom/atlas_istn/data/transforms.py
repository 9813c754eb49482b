# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Transforms of the preprocessing that MONAI lacks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.transforms.utils_pytorch_numpy_unification import percentile
from monai.utils import convert_to_dst_type
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ..errors import InputError
from ..io.geometry import check_resampled_size, name_of

__all__ = ["AntiAliasd", "FillBackgroundd", "ScalePercentilesd"]


class AntiAliasd(MapTransform):
    """Smooth an image along the axes that a following `Spacingd` is about to coarsen.

    The standard deviation is ``(ratio − 1) / 2`` voxels of the fine grid, as in scikit-image; finer or equal target
    spacings leave the axis alone.

    Args:
        keys: images ``[C, *shape]`` (MetaTensor).
        pixdim: target spacing in millimetres along the array axes.

    Raises:
        InputError: on calling, if the image would be larger than the memory, or nothing, at the target spacing.
    """

    def __init__(self, keys: KeysCollection, pixdim: Sequence[float], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.pixdim = np.asarray(pixdim, dtype=float)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Smooth every keyed image."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            check_resampled_size(image, self.pixdim.tolist())
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


class ScalePercentilesd(MapTransform):
    """Scale intensities so that two percentiles of a channel, or the ends of a window, become 0 and 1, and clip them.

    A channel that shows nothing becomes 0, if another one shows something.

    Padding counts for nothing in the percentiles. Its share of each channel is ``meta["padding"]``, and its voxels
    have the value of background (see `atlas_istn.io.intensities`), so they are left out as the lowest ones.

    Args:
        keys: images ``[C, *shape]`` (MetaTensor).
        lower: percentile that becomes 0.
        upper: percentile that becomes 1.
        limits: least and greatest result. A network has to be given what it was trained with.
        window: intensities that become 0 and 1 in place of the percentiles, where values have a meaning as in CT; or
            for each channel that or None.

    Raises:
        InputError: on calling, if both percentiles are the same, or there are not as many windows as channels.
    """

    def __init__(
        self,
        keys: KeysCollection,
        lower: float,
        upper: float,
        limits: Sequence[float],
        window: Sequence[float] | Sequence[Sequence[float] | None] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.lower, self.upper, self.limits, self.window = lower, upper, limits, window

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale every keyed image."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self._scaled(result[key])
        return result

    def _scaled(self, image: MetaTensor) -> MetaTensor:
        voxels = torch.as_tensor(image).float()
        padding = np.broadcast_to(image.meta.get("padding", 0.0), len(voxels))
        ends = [self._ends(*channel) for channel in zip(voxels, padding, self._windows(len(voxels)), strict=True)]
        if all(low == high for low, high in ends):
            raise InputError(
                f"{name_of(image)}: the image shows almost nothing, its percentiles {self.lower:g} and "
                f"{self.upper:g} are both {ends[0][0]:g}. Expected an image with contrast. Check the export."
            )
        scaled = [
            ((channel - low) / (high - low)).clamp(*self.limits) if low != high else torch.zeros_like(channel)
            for channel, (low, high) in zip(voxels, ends, strict=True)
        ]
        dressed: MetaTensor = convert_to_dst_type(torch.stack(scaled), image)[0]
        return dressed

    def _windows(self, channels: int) -> Sequence[Sequence[float] | None]:
        """The window of each channel."""
        if self.window is None or isinstance(self.window[0], int | float):
            return [cast(Sequence[float] | None, self.window)] * channels
        if len(self.window) != channels:
            raise InputError(
                f"intensity_window: expected one for each of {channels} channels, found {len(self.window)}. "
                "Complete it."
            )
        return cast(Sequence[Sequence[float] | None], self.window)

    def _ends(self, voxels: Tensor, padding: float, window: Sequence[float] | None) -> tuple[Any, Any]:
        """The intensities of a channel that become 0 and 1."""
        low, high = window or (
            percentile(voxels, 100 * padding + end * (1 - padding)) for end in (self.lower, self.upper)
        )
        return low, high
