# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Affine maps built from translation, rotation, scale and shear.

``T = M_t R_θ D_s`` (Atlas-ISTN, eq. 1) scales along the axes of the image; ``T = M_t R_φ S_ψ⁻¹ D_s S_ψ`` (ISTN, eq. 3)
along axes that ``S_ψ`` turns to those of the image, which makes every affine map without reflection.

A map acts on *centred* coordinates: millimetres (or any unit proportional to them) relative to the centre of the image.
Anisotropic voxels therefore do not shear a rotation.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from .sampling import full_precision, per_axis

__all__ = [
    "affine_matrix",
    "affine_sampling_grid",
    "apply_affine",
    "compose_affine",
    "decompose_affine",
    "invert_affine",
    "num_affine_parameters",
]


def num_affine_parameters(dim: int, shear: bool = False) -> int:
    """Number of parameters: translation, rotation (1 angle in 2D, a vector in 3D), log-scale; shear as rotation."""
    angles = 1 if dim == 2 else 3
    return dim + angles + dim + (angles if shear else 0)


def _rotation(vector: Tensor) -> Tensor:
    """Rotation matrices ``[B, dim, dim]`` of an angle ``[B, 1]`` or rotation vectors ``[B, 3]``, in radians.

    The matrix exponential of the skew-symmetric generator by Rodrigues' formula, regular everywhere, the identity
    included: ``1 + sin θ/θ K + (1 − cos θ)/θ² K²``.
    """
    if vector.shape[1] == 1:
        cos, sin = vector.cos(), vector.sin()
        return torch.cat([cos, -sin, sin, cos], dim=1).reshape(-1, 2, 2)
    x, y, z = vector.unbind(1)
    zero = torch.zeros_like(x)
    generator = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).reshape(-1, 3, 3)
    # A square root has no derivative at 0; the least angle is far below any rounding of the matrix.
    angle = (vector.square().sum(dim=1) + 1e-20).sqrt().reshape(-1, 1, 1)
    half = torch.sinc(angle / (2 * torch.pi))
    square = _multiply(generator, generator)
    return (
        torch.eye(3, device=vector.device, dtype=vector.dtype)
        + torch.sinc(angle / torch.pi) * generator
        + 0.5 * half * half * square
    )


def affine_matrix(parameters: Tensor, limits: Tensor) -> Tensor:
    """Matrix of bounded affine parameters.

    Each parameter is bounded smoothly as ``limit · tanh(parameter / limit)``, which is the identity map near zero.

    Args:
        parameters: ``[B, P]``, as for `compose_affine`.
        limits: ``[P]``, the largest magnitude of each parameter; 0 switches a parameter off.

    Returns:
        ``[B, dim, dim + 1]``, float32, or float64 where the parameters are: linear part and translation.
    """
    limits = limits.to(parameters.device)
    return compose_affine(limits * torch.tanh(full_precision(parameters) / limits.clamp_min(1e-12)))


def compose_affine(parameters: Tensor) -> Tensor:
    """Matrix ``[B, dim, dim + 1]`` of parameters as they are: without bounds.

    Args:
        parameters: ``[B, P]``, `num_affine_parameters` of them: translation in units of the centred coordinates,
            rotation in radians (angle or rotation vector), log-scale; and, where there are as many, the rotation ψ of
            the axes of scaling.
    """
    dim, angles = (2, 1) if parameters.shape[1] <= 6 else (3, 3)
    translation, rotation, log_scale, turn = parameters.split(
        [dim, angles, dim, parameters.shape[1] - 2 * dim - angles], dim=1
    )
    scale = torch.exp(log_scale).unsqueeze(1)
    linear = _rotation(rotation) * scale
    if turn.shape[1]:
        axes = _rotation(turn)
        # A matmul would run in bf16 under autocast.
        linear = _multiply(_multiply(_rotation(rotation), axes.mT) * scale, axes)
    return torch.cat([linear, translation.unsqueeze(-1)], dim=-1)


def decompose_affine(matrix: Tensor) -> Tensor:
    """Translation, rotation and log-scale ``[B, P]`` of matrices without shear; inverts `compose_affine`.

    These are the parameters in which affine maps are averaged: the mean translation, the mean rotation vector, and the
    geometric mean of the scales.
    """
    linear, translation = matrix[..., :-1], matrix[..., -1]
    scale = linear.norm(dim=1)
    rotation = linear / scale.unsqueeze(1)
    if len(linear[0]) == 2:
        vector = torch.atan2(rotation[:, 1, 0], rotation[:, 0, 0]).unsqueeze(1)
    else:
        vector = torch.from_numpy(Rotation.from_matrix(rotation.detach().cpu().numpy()).as_rotvec()).to(matrix)
    return torch.cat([translation, vector, scale.log()], dim=1)


def _multiply(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Matrices ``[B, dim, dim]`` times columns ``[B or 1, dim, N]``; a matmul would run in bf16 under autocast."""
    total = matrix[:, :, :1] * vectors[:, :1]
    for k in range(1, matrix.shape[2]):
        total = total + matrix[:, :, k : k + 1] * vectors[:, k : k + 1]
    return total


def invert_affine(matrix: Tensor) -> Tensor:
    """Exact inverse of affine matrices ``[B, dim, dim + 1]``."""
    linear = torch.linalg.inv(matrix[..., :-1])
    return torch.cat([linear, -_multiply(linear, matrix[..., -1:])], dim=-1)


def apply_affine(matrix: Tensor, points: Tensor, spacing: list[float], shape: list[int]) -> Tensor:
    """Map voxel coordinates by an affine map that acts on centred coordinates.

    Args:
        matrix: ``[B, dim, dim + 1]``.
        points: ``[B or 1, dim, *grid]``, voxel coordinates.
        spacing: size of a voxel along each array axis, in the unit of the matrix.
        shape: spatial shape of the image whose centre is the origin.

    Returns:
        ``[B, dim, *grid]``, voxel coordinates.
    """
    linear, offset = _in_voxels(matrix, spacing, shape)
    mapped = _multiply(linear, points.flatten(2)) + offset
    return mapped.reshape(list(mapped.shape[:2]) + list(points.shape[2:]))


def affine_sampling_grid(
    matrix: Tensor, spacing: list[float], shape: list[int], start: list[int], size: list[int]
) -> Tensor:
    """Where an affine map takes the voxels of a window, as `resample` wants it.

    One product with the voxels of the window, which are made once: cheap, backwards too.

    Args:
        matrix: ``[B, dim, dim + 1]``, in centred coordinates.
        spacing: size of a voxel along each array axis, in the unit of the matrix.
        shape: spatial shape of the image whose centre is the origin.
        start: first voxel of the window along each axis.
        size: voxels of the window along each axis.

    Returns:
        ``[B, dim, *size]``, coordinates in [-1, 1] over the image, last axis first.
    """
    unit = per_axis([2.0 / (max(n - 1, 1) * s) for n, s in zip(shape, spacing, strict=True)], matrix)
    points = _centred_voxels(tuple(spacing), tuple(shape), tuple(start), tuple(size), matrix.dtype, matrix.device)
    with torch.autocast(matrix.device.type, enabled=False):
        mapped = (matrix * unit).flip(1) @ points
    return mapped.reshape([-1, len(shape), *size])


@lru_cache(maxsize=4)  # windows are as many as cases, and large
def _centred_voxels(
    spacing: tuple[float, ...],
    shape: tuple[int, ...],
    start: tuple[int, ...],
    size: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Homogeneous centred coordinates ``[dim + 1, N]`` of the voxels of a window."""
    with torch.inference_mode(False):
        axes = [
            (torch.arange(first, first + count, dtype=dtype, device=device) - (n - 1) / 2) * step
            for first, count, n, step in zip(start, size, shape, spacing, strict=True)
        ]
        points = torch.stack(torch.meshgrid(axes, indexing="ij")).flatten(1)
        return torch.cat([points, torch.ones_like(points[:1])])


def _in_voxels(matrix: Tensor, spacing: list[float], shape: list[int]) -> tuple[Tensor, Tensor]:
    """The map in voxel coordinates, S⁻¹ (A S (p − c) + t) + c: linear ``[B, dim, dim]`` and offset ``[B, dim, 1]``."""
    dim = len(shape)
    size = per_axis(spacing, matrix)
    centre = per_axis([(n - 1) / 2 for n in shape], matrix)
    linear = matrix[..., :dim] * size.reshape(1, dim) / size
    return linear, matrix[..., dim:] / size + centre - _multiply(linear, centre.unsqueeze(0))
