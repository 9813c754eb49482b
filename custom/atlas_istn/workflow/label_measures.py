# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What a result tells about each of its labels, measured on the model's grid; the Dice is predicted from it."""

from __future__ import annotations

import torch
from monai.metrics import DiceMetric
from torch import Tensor
from torch.nn import functional

from ..inferers.result import Result
from ..spatial import one_hot_labels
from .measures import label_entropy

__all__ = ["LABEL_MEASURES", "dice_of_labels", "measure_labels"]

LABEL_MEASURES = ("disagreement", "one_pass", "doubt", "entropy", "unlikeness")
"""Names of what `measure_labels` measures, in its order."""
_WINDOW = 5  # voxels: of the correlation of image and atlas
_BAND = 5  # voxels: of the band about the border of a label
_FLAT = 1e-5  # least variance in a window, of intensities from 0 to 1


def measure_labels(result: Result, image: Tensor, atlas_image: Tensor) -> Tensor:
    """Measure how far each label of a result can be believed; each measure goes from 0, well, to 1.

    In the order of `LABEL_MEASURES`: 1 − Dice of ITN's and refined label; of ITN's and 1-pass's; 1 − soft Dice of the
    ITN's probabilities and the refined label, which is what the ITN expects of it; in a band about the border of the
    refined label the mean entropy of the ITN, and 1 − the local correlation of the image with the atlas's, moved as the
    labels are. The last is a reverse classification accuracy (Valindria et al. 2017) whose reference is the atlas, the
    mean of the training cases: the one measure that asks the image and not the ITN.

    Args:
        result: of a refinement, with prediction, 1-pass and transform, a batch of B.
        image: that was segmented, ``[B, C, *shape]``.
        atlas_image: ``[1, C, *shape]``.

    Returns:
        ``[B, Nc - 1, 5]``.
    """
    if result.prediction is None or result.one_pass is None or result.transform is None:
        return image.new_zeros(len(result), 0, len(LABEL_MEASURES))
    predicted, refined = result.prediction.float().clamp(0.0, 1.0), one_hot_labels(result.segmentation)
    band = _band(refined)
    likeness = _local_correlation(image, result.transform.to_fixed(atlas_image)).mean(dim=1, keepdim=True)
    columns = (
        1.0 - dice_of_labels(predicted, result.segmentation),
        1.0 - dice_of_labels(predicted, result.one_pass),
        1.0 - _overlap(predicted, refined),
        _mean_in(band, label_entropy(predicted)),
        1.0 - _mean_in(band, likeness).clamp_min(0.0),
    )
    return torch.stack([column.nan_to_num(1.0) for column in columns], dim=2)


def dice_of_labels(first: Tensor, second: Tensor) -> Tensor:
    """Dice of each foreground label of two soft labelmaps ``[B, Nc, *shape]``, ``[B, Nc - 1]``.

    NaN of a label that the second has not.
    """
    dice = DiceMetric(include_background=False, reduction="none")(one_hot_labels(first), one_hot_labels(second))
    return torch.as_tensor(dice)


def _overlap(soft: Tensor, labels: Tensor) -> Tensor:
    """Soft Dice of the foreground of ``[B, Nc, *shape]`` each, ``[B, Nc - 1]``."""
    first, second = (tensor[:, 1:].flatten(2) for tensor in (soft, labels))
    return 2.0 * (first * second).sum(dim=2) / (first + second).sum(dim=2).clamp_min(1e-6)


def _band(labels: Tensor) -> Tensor:
    """The surroundings of the borders of the foreground ``[B, Nc, *shape]``, one-hot, ``[B, Nc - 1, *shape]``."""
    pool = functional.max_pool3d if labels.ndim == 5 else functional.max_pool2d
    inner = labels[:, 1:]
    return pool(inner, _BAND, 1, _BAND // 2) + pool(-inner, _BAND, 1, _BAND // 2)


def _mean_in(band: Tensor, values: Tensor) -> Tensor:
    """Mean of ``[B, 1, *shape]`` in each channel of a band ``[B, K, *shape]``, ``[B, K]``; NaN where it is empty."""
    inside = band.flatten(2)
    return (inside * values.flatten(2)).sum(dim=2) / inside.sum(dim=2)


def _local_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Correlation of images ``[B, C, *shape]`` in a window about every voxel, from -1 to 1; 0 where one is flat."""
    pool = functional.avg_pool3d if first.ndim == 5 else functional.avg_pool2d

    def mean(image: Tensor) -> Tensor:
        return pool(image, _WINDOW, 1, _WINDOW // 2, count_include_pad=False)

    means = mean(first), mean(second)
    covariance = mean(first * second) - means[0] * means[1]
    variances = (mean(image.square()) - centre.square() for image, centre in zip((first, second), means, strict=True))
    one, other = (variance.clamp_min(_FLAT) for variance in variances)
    return covariance / (one * other).sqrt()
