# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What the values of voxels have to be, and which of them show nothing.

Scanners and reslicing fill what they have not measured with one value, such as -1024 or -32768. It says nothing of
contrast, and would ruin a scaling by percentiles. Such voxels get a background value of the image, and their share is
kept, so that the scaling can leave them out; see `atlas_istn.data.transforms.ScalePercentilesd`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor

from ..errors import InputError
from .geometry import name_of

__all__ = ["border_padding", "check_contrast", "check_finite", "check_real", "without_padding"]

_RANGE = (0.01, 0.99)  # quantiles between which an image has its contrast
_APART = 0.5  # of that range: how far off the value of padding lies at least


def check_real(dtype: npt.DTypeLike, name: str) -> None:
    """Refuse an image whose numbers are complex, or are records such as colours.

    Args:
        dtype: of the voxels as stored.
        name: of the image, for the message.

    Raises:
        InputError: they are.
    """
    kind = np.dtype(dtype).kind
    if kind not in "buif":
        found = "complex numbers" if kind == "c" else "several numbers in each voxel (colours)"
        remedy = "Convert it, for example to magnitudes" if kind == "c" else "Convert it"
        raise InputError(f"{name}: the image holds {found}. Expected one real number in each voxel. {remedy}.")


def check_finite(volume: MetaTensor) -> None:
    """Refuse an image ``[C, *shape]`` with voxels that are no numbers.

    Raises:
        InputError: there are NaN or infinite ones.
    """
    count = int((~volume.as_tensor().isfinite()).sum())
    if count:
        raise InputError(
            f"{name_of(volume)}: {count} of {volume.numel()} voxels are not finite (NaN or infinite). Expected "
            f"numbers. Replace them, for example by the background value."
        )


def check_contrast(image: MetaTensor) -> None:
    """Refuse an image ``[C, *shape]`` that shows nothing.

    Raises:
        InputError: all voxels have the same value.
    """
    if image.min() == image.max():
        raise InputError(
            f"{name_of(image)}: the image is constant, all voxels are {float(image.min()):g}. Expected an image with "
            f"contrast. Check the export."
        )


def border_padding(voxels: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Find padding that no header declares: one exact value, but 0, that fills half or more of a plane at the border.

    It has to lie apart from all that is no such value, by half of the range between their percentiles 1 and 99. Zero is
    the background of images that only show the brain, and stays.

    Args:
        voxels: ``[*shape]``.

    Returns:
        Mask of the voxels that have such a value, wherever they lie.
    """
    planes = [np.take(voxels, [end], axis) for axis in range(voxels.ndim) for end in (0, -1)]
    candidates = {value for plane in planes if (value := _filling(plane)) is not None}
    rest = voxels[~np.isin(voxels, list(candidates))] if candidates else voxels
    if not candidates or not rest.size:
        return np.zeros(voxels.shape, dtype=bool)
    low, high = np.quantile(rest, _RANGE)
    apart = [value for value in candidates if max(low - value, value - high) > _APART * (high - low)]
    return np.isin(voxels, apart)


def _filling(plane: npt.NDArray[np.floating]) -> float | None:
    """The value, other than 0, that half or more of a plane has."""
    values, counts = np.unique(plane, return_counts=True)
    most = counts.argmax()
    return float(values[most]) if values[most] != 0 and 2 * counts[most] >= plane.size else None


def without_padding(
    voxels: npt.NDArray[np.float32], padding: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float32], float]:
    """Give padding the value of the background, the first percentile of what is no padding.

    Args:
        voxels: ``[*shape]``.
        padding: mask of the same shape; where it holds all voxels, they stay as they are.

    Returns:
        The voxels, and the share of them that is padding.
    """
    if not padding.any() or padding.all():
        return voxels, 0.0
    background = np.quantile(voxels[~padding], _RANGE[0])
    return np.where(padding, np.float32(background), voxels), float(padding.mean())
