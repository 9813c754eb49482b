# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Identity grids and linear resampling of images and displacement fields."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "full_precision",
    "identity_grid",
    "multiply_axis",
    "per_axis",
    "resample",
    "rescale_displacement",
    "resize_displacement",
    "sample_displacement",
    "warp",
]


def _build_identity(shape: list[int], device: torch.device) -> Tensor:
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in shape]
    return torch.stack(torch.meshgrid(axes, indexing="ij")).unsqueeze(0)


@lru_cache(maxsize=32)
def _cached_identity(shape: tuple[int, ...], device: torch.device) -> Tensor:
    # A grid first asked for under inference_mode could not take part in a later backward pass.
    with torch.inference_mode(False):
        return _build_identity(list(shape), device)


@torch.jit.unused
def _eager_identity(shape: list[int], device: torch.device) -> Tensor:
    return _cached_identity(tuple(shape), device)


def identity_grid(shape: list[int], device: torch.device) -> Tensor:
    """Voxel coordinates of a grid.

    Grids are constant and are built once per shape and device (rebuilt only inside TorchScript).

    Args:
        shape: spatial shape of the grid.
        device: where the grid lives.

    Returns:
        ``[1, dim, *shape]``, component k holding the index along array axis k. Not to be written to.
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return _build_identity(shape, device)
    return _eager_identity(shape, device)


def per_axis(values: list[float], like: Tensor) -> Tensor:
    """A constant for each axis, ``[dim, 1]``, of the type of a tensor; made once, but inside TorchScript."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)
    return _eager_per_axis(values, like)


@torch.jit.unused
def _eager_per_axis(values: list[float], like: Tensor) -> Tensor:
    return _cached_per_axis(tuple(values), like.dtype, like.device)


@lru_cache(maxsize=128)
def _cached_per_axis(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device).unsqueeze(1)


def _normalised(points: Tensor, shape: list[int]) -> Tensor:
    """Voxel coordinates ``[B, dim, ...]`` for ``grid_sample``: ``[B, ..., dim]`` in [-1, 1], last axis first."""
    scale = per_axis([2.0 / max(n - 1, 1) for n in shape], points).reshape(len(shape))
    return (points.movedim(1, -1) * scale - 1.0).flip(-1)


def full_precision(field: Tensor) -> Tensor:
    """Raise half precision to float32 and leave float64 as it is."""
    return field if field.dtype == torch.float64 else field.float()


def warp(image: Tensor, displacement: Tensor, mode: str = "bilinear", padding_mode: str = "border") -> Tensor:
    """Resample an image at displaced points: ``warp(z, u)(p) = z(p + u(p))``.

    Computed in the displacement's precision, at least float32 whatever the autocast state: half precision moves points
    by up to 0.3 voxel.

    Args:
        image: ``[B, C, *shape]``; a batch of one is shared by every displacement.
        displacement: ``[B, dim, *grid]`` in voxels of the image; the grid may be larger or smaller than the image.
        mode: ``"bilinear"`` (linear in 2D and 3D) or ``"nearest"``.
        padding_mode: value beyond the border: ``"border"`` or ``"zeros"``.

    Returns:
        ``[B, C, *grid]``, float32, or float64 where the displacement is.
    """
    points = identity_grid(list(displacement.shape[2:]), displacement.device) + displacement
    return _sample(image, points, mode, padding_mode)


def _sample(image: Tensor, points: Tensor, mode: str = "bilinear", padding_mode: str = "border") -> Tensor:
    """Values ``[B, C, *grid]`` of an image at voxel coordinates ``[B, dim, *grid]``, in the precision of these."""
    return resample(image, _normalised(full_precision(points), list(image.shape[2:])), mode, padding_mode)


def resample(image: Tensor, grid: Tensor, mode: str = "bilinear", padding_mode: str = "border") -> Tensor:
    """Values of an image at the points of a grid that is made already.

    Args:
        image: ``[B or 1, C, *shape]``.
        grid: ``[B, *grid, dim]``, coordinates in [-1, 1] over the image, last axis first, as of `grid_sample`.
        mode: see `warp`.
        padding_mode: see `warp`.

    Returns:
        ``[B, C, *grid]``, in the precision of the grid.
    """
    image = image.to(grid.dtype)
    if image.shape[0] != grid.shape[0]:
        image = image.expand([grid.shape[0]] + [-1] * (image.dim() - 1))
    # grid_sample is on autocast's float32 list on CUDA; on a CPU the two inputs already decide.
    return F.grid_sample(image, grid, mode=mode, padding_mode=padding_mode, align_corners=True)


def sample_displacement(displacement: Tensor, points: Tensor, shape: list[int] | None = None) -> Tensor:
    """Value of a displacement field at arbitrary points; beyond the border it continues with the border's value.

    Args:
        displacement: ``[B, dim, *own]`` in voxels of its grid.
        points: ``[B, dim, *grid]``, voxel coordinates of an image.
        shape: of the image, which has the extent of the field; default: that of the field.

    Returns:
        ``[B, dim, *grid]`` in voxels of the image.
    """
    if shape is None:
        return _sample(displacement, points)
    points = _normalised(full_precision(points), shape)
    return resample(rescale_displacement(full_precision(displacement), shape), points)


def rescale_displacement(displacement: Tensor, shape: list[int]) -> Tensor:
    """The vectors ``[B, dim, *own]`` of a field in voxels of a grid of another shape over the same extent."""
    ratio = per_axis([(n - 1) / max(displacement.shape[2 + i] - 1, 1) for i, n in enumerate(shape)], displacement)
    return displacement * ratio.reshape([1, len(shape)] + [1] * len(shape))


def resize_displacement(displacement: Tensor, shape: list[int]) -> Tensor:
    """Bring a displacement or velocity field to another grid over the same extent, rescaling its vectors.

    Args:
        displacement: ``[B, dim, *old_shape]`` in voxels of its grid.
        shape: spatial shape of the new grid; both grids share their corner voxel centres.

    Returns:
        ``[B, dim, *shape]`` in voxels of the new grid.
    """
    if list(displacement.shape[2:]) == list(shape):
        return displacement
    field = rescale_displacement(full_precision(displacement), shape)
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        mode = "bilinear" if len(shape) == 2 else "trilinear"
        return F.interpolate(field, size=shape, mode=mode, align_corners=True)
    return _interpolate(field, shape)


@torch.jit.unused
def _interpolate(field: Tensor, shape: list[int]) -> Tensor:
    """As `F.interpolate`, but several times faster on a CPU, backwards most of all."""
    for axis in range(len(shape) - 1, -1, -1):
        field = multiply_axis(_interpolation(shape[axis], field.shape[2 + axis], field.device), field, 2 + axis)
    return field


@torch.jit.unused
def multiply_axis(matrix: Tensor, field: Tensor, axis: int) -> Tensor:
    """Multiply an axis of a field by a matrix ``[new, old]``, in the field's precision whatever the autocast state.

    A small matrix product is the fastest way on a CPU to filter or interpolate along an axis, and no axes are moved
    about: gradients that come back in another layout than the images make resampling backwards several times slower.
    """
    matrix = matrix.to(field.dtype)
    with torch.autocast(field.device.type, enabled=False):
        if axis == field.ndim - 1:
            return field @ matrix.T
        product = matrix @ field.flatten(axis + 1)
    return product.reshape(*field.shape[:axis], len(matrix), *field.shape[axis + 1 :])


@lru_cache(maxsize=64)
def _interpolation(new: int, old: int, device: torch.device) -> Tensor:
    """Weights ``[new, old]``, float64, of linear interpolation along an axis; both grids share their ends."""
    with torch.inference_mode(False):
        place = torch.linspace(0, old - 1, new, dtype=torch.float64, device=device)
        nodes = torch.arange(old, dtype=torch.float64, device=device)
        return (1.0 - (place[:, None] - nodes[None]).abs()).clamp_min(0.0)
