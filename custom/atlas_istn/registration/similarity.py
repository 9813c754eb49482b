# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Errors of two images or soft labelmaps ``[B, C, *shape]``, one per case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from monai.losses import DiceLoss, GlobalMutualInformationLoss
from monai.networks.layers import gaussian_1d
from torch import Tensor

from ..spatial import multiply_axis

__all__ = [
    "LocalCorrelation",
    "MultiscaleDice",
    "MutualInformation",
    "RobustError",
    "SoftDice",
    "correlation",
    "squared_error",
]

_FLAT = 1e-5  # least variance in a window, as MONAI has it


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Per-case squared error ``[B]``: summed over channels, averaged over voxels, so independent of the matrix size."""
    return _squared_difference(prediction, target).flatten(1).mean(dim=1)


def correlation(moving: Tensor, fixed: Tensor) -> Tensor:
    """``1 − NCC`` of MAS-refine, eq. (4): global correlation of each channel, mean over channels; ``[B]``, 0 to 2.

    A channel without contrast correlates with nothing.
    """
    first, second = (image.flatten(2) - image.flatten(2).mean(dim=2, keepdim=True) for image in (moving, fixed))
    norms = first.square().sum(dim=2) * second.square().sum(dim=2)
    return 1.0 - ((first * second).sum(dim=2) / norms.clamp_min(1e-12).sqrt()).mean(dim=1)


class LocalCorrelation:
    """``1 −`` squared correlation in windows (Avants et al. 2008), mean over channels and voxels; ``[B]``, 0 to 1.

    `monai.losses.LocalNormalizedCrossCorrelationLoss` gives the same, by convolutions that take ten times as long.

    Args:
        size: side of the window in voxels, an odd number; beyond the border there are zeros.
    """

    def __init__(self, size: int = 5) -> None:
        self.size = size

    def __call__(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Error of images ``[B, C, *shape]``."""
        voxels = self.size ** (moving.ndim - 2)
        sums, fixed_sums = self._sums(moving), self._sums(fixed)
        cross = self._sums(moving * fixed) - sums * fixed_sums / voxels
        variance = self._sums(moving.square()) - sums.square() / voxels
        fixed_variance = self._sums(fixed.square()) - fixed_sums.square() / voxels
        squared = cross.square() / (variance.clamp_min(_FLAT) * fixed_variance.clamp_min(_FLAT))
        return 1.0 - squared.flatten(1).mean(dim=1)

    def _sums(self, image: Tensor) -> Tensor:
        for axis in range(2, image.ndim):
            image = multiply_axis(_box(image.shape[axis], self.size, image.device), image, axis)
        return image


class MutualInformation:
    """Minus the mutual information of intensities (Mattes et al. 2003, Gaussian windows), mean over channels; ``[B]``.

    Intensities are expected from 0 to 1. Memory grows with the number of bins times that of voxels.

    Args:
        bins: of the joint histogram.
    """

    def __init__(self, bins: int = 23) -> None:
        self.loss = GlobalMutualInformationLoss(num_bins=bins, reduction="none")

    def __call__(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Error of images ``[B, C, *shape]``."""
        negative: Tensor = self.loss(*_channels_as_cases(moving, fixed))
        return negative.reshape(max(len(moving), len(fixed)), -1).mean(dim=1)


class SoftDice:
    """``1 −`` soft Dice of labelmaps, mean over the foreground channels; ``[B]``.

    Args:
        half: as MAS-refine prints it in eq. (5), without the factor 2: perfect overlap costs 0.5, and all weighs half.
    """

    def __init__(self, half: bool = False) -> None:
        self.loss = DiceLoss(include_background=False, reduction="none")
        self.half = half

    def __call__(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Error of labelmaps ``[B, Nc, *shape]``, channel 0 the background."""
        error: Tensor = self.loss(*torch.broadcast_tensors(moving, fixed)).flatten(1).mean(dim=1)
        return 0.5 + 0.5 * error if self.half else error


class MultiscaleDice:
    """``1 −`` soft Dice of structures that are blurred at several scales, mean over scales and channels; ``[B]``.

    Structures that do not yet overlap do so when they are blurred: the coarse scales pull, the fine ones fit (X-MAS, as
    label-driven registration has it, Hu et al. 2018). Squares in the denominator make equal blurred maps agree fully.
    A blurred structure is looked at once in each standard deviation: more voxels would cost time and say nothing new.

    Args:
        scales: standard deviations of the Gaussians in millimetres; 0 for the structures as they are.
        spacing: voxel size of the grid in millimetres.
        slices: largest standard deviation, in voxels, along an axis whose voxels are more than twice as long as the
            shortest: across few thick slices a wide Gaussian would leave nothing to compare.
    """

    def __init__(self, scales: Sequence[float], spacing: Sequence[float], slices: float = 2.0) -> None:
        limits = [slices if size > 2 * min(spacing) else math.inf for size in spacing]
        self.sigmas = [
            [min(scale / size, limit) for size, limit in zip(spacing, limits, strict=True)] for scale in scales
        ]
        self.loss = DiceLoss(squared_pred=True, reduction="none")

    def __call__(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Error of structures ``[B, K, *shape]``, all channels foreground."""
        errors = [self.loss(*(_smooth(image, sigma, thin=True) for image in (moving, fixed))) for sigma in self.sigmas]
        return torch.stack(errors).flatten(2).mean(dim=(0, 2))


class RobustError:
    """Squared error that levels off where a whole neighbourhood disagrees (Geman-McClure), per case ``[B]``.

    With e the squared error of a voxel, summed over channels and averaged over its surroundings, the mean of
    ``e / (1 + e / scale)``. Clutter in a prediction then attracts the atlas no more than a bounded amount, while near
    agreement it acts as `squared_error`. For the same reason it needs a start that overlaps: what the atlas does not
    yet reach looks like clutter.

    Args:
        scale: the error that counts half, and the bound; a voxel of the wrong class has an error of 2.
        sigma: standard deviation in voxels of the averaging, so that thin borders, always uncertain, are no outliers.
    """

    def __init__(self, scale: float = 0.2, sigma: float = 1.5) -> None:
        self.scale = scale
        self.sigma = sigma

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Error of labelmaps ``[B, Nc, *shape]``."""
        error = _squared_difference(prediction, target)
        error = _smooth(error, [self.sigma] * (error.ndim - 2))
        return (error / (1.0 + error / self.scale)).flatten(1).mean(dim=1)


def _smooth(image: Tensor, sigmas: Sequence[float], thin: bool = False) -> Tensor:
    """Image ``[B, C, *shape]`` behind a Gaussian filter with a standard deviation in voxels along each axis.

    With ``thin`` one voxel in each standard deviation is kept. By Poisson's formula the sum over them is that over all
    but for exp(-2π²) of its size, and a sum of products of two such images but for exp(-π²), 5e-5.
    """
    for axis, sigma in enumerate(sigmas, start=2):
        if sigma > 0:
            stride = max(1, int(sigma)) if thin else 1
            image = multiply_axis(_blur(image.shape[axis], sigma, image.device)[::stride], image, axis)
    return image


@lru_cache(maxsize=16)
def _box(size: int, width: int, device: torch.device) -> Tensor:
    """Matrix ``[size, size]`` of sums over windows with zeros beyond the ends."""
    place = torch.arange(size, device=device)
    return ((place[:, None] - place[None]).abs() <= width // 2).float()


@lru_cache(maxsize=64)
def _blur(size: int, sigma: float, device: torch.device) -> Tensor:
    """Matrix ``[size, size]`` of a Gaussian filter with zeros beyond the ends."""
    kernel = gaussian_1d(torch.as_tensor(sigma), truncated=4.0)
    radius = len(kernel) // 2
    place = torch.arange(size)
    distance = (place[:, None] - place[None]).abs()
    matrix = kernel[radius + distance.clamp_max(radius)] * (distance <= radius)
    return matrix.to(device)


def _channels_as_cases(moving: Tensor, fixed: Tensor) -> list[Tensor]:
    """Images ``[B C, 1, *shape]`` for losses that know one channel."""
    return [image.flatten(0, 1).unsqueeze(1) for image in torch.broadcast_tensors(moving, fixed)]


class _SquaredDifference(torch.autograd.Function):
    """Squared difference summed over channels, one channel at a time: neither pass holds more than its result."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(prediction, target)
        total = (prediction[:, :1] - target[:, :1]).square_()
        for channel in range(1, prediction.shape[1]):
            difference = prediction[:, channel : channel + 1] - target[:, channel : channel + 1]
            total.addcmul_(difference, difference)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        prediction, target = ctx.saved_tensors
        product = torch.sub(prediction, target).mul_(gradient).mul_(2.0)
        return (
            product.sum_to_size(prediction.shape) if ctx.needs_input_grad[0] else None,
            -product.sum_to_size(target.shape) if ctx.needs_input_grad[1] else None,
        )


def _squared_difference(prediction: Tensor, target: Tensor) -> Tensor:
    """``[B, 1, *shape]``, in the wider precision of both; either may be a batch of one."""
    kind = torch.promote_types(prediction.dtype, target.dtype)
    error: Tensor = _SquaredDifference.apply(prediction.to(kind), target.to(kind))
    return error
