# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Errors of two images or soft labelmaps ``[B, C, *shape]``, one per case."""

from __future__ import annotations

from functools import lru_cache

import torch
from monai.networks.layers import gaussian_1d
from torch import Tensor

__all__ = ["RobustError", "squared_error"]


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Per-case squared error ``[B]``: summed over channels, averaged over voxels, so independent of the matrix size."""
    return (prediction - target).square().sum(dim=1).flatten(1).mean(dim=1)


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
        error = (prediction - target).square().sum(dim=1, keepdim=True)
        for axis in range(2, error.ndim):
            error = (error.movedim(axis, -1) @ _blur(error.shape[axis], self.sigma, error.device)).movedim(-1, axis)
        return (error / (1.0 + error / self.scale)).flatten(1).mean(dim=1)


@lru_cache(maxsize=16)
def _blur(size: int, sigma: float, device: torch.device) -> Tensor:
    """Matrix ``[size, size]`` of a Gaussian filter with zeros beyond the ends.

    On grids of the usual size a matrix product is several times faster on a CPU than a convolution along one axis.
    """
    kernel = gaussian_1d(torch.as_tensor(sigma), truncated=4.0)
    radius = len(kernel) // 2
    place = torch.arange(size)
    distance = (place[:, None] - place[None]).abs()
    matrix = kernel[radius + distance.clamp_max(radius)] * (distance <= radius)
    return matrix.to(device)
