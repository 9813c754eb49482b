# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Principal modes of variation of a cohort's transforms in the log domain.

The velocity field and the logarithm of the scales of a transform form a vector space: means and modes in it are again
diffeomorphisms (log-Euclidean statistics, Arsigny et al. 2006). Position and orientation are no shape: they are left
out of the affine maps, and their share of the velocity fields is taken out too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..spatial import Transform, compose_affine, decompose_affine, num_affine_parameters

__all__ = ["ShapeModes", "shape_modes"]

Array = npt.NDArray[np.float64]

# What is below is rounding, and has no direction.
_LEAST_SHARE = 1e-9  # of the variance
_LEAST_VARIANCE = 1e-10  # mm²


@dataclass(frozen=True)
class ShapeModes:
    """Mean and principal modes.

    Attributes:
        mean: the mean transform, without position and orientation; a batch of one.
        velocities: of each mode for one standard deviation, ``[K, dim, *half]`` in voxels of the velocity's grid.
        log_scales: of each mode for one standard deviation, ``[K, dim]``.
        deviations: standard deviation of each mode ``[K]``: root mean square displacement of the anatomy in mm.
        explained: share of the cohort's variance ``[K]``.
        scores: of each case in standard deviations, ``[N, K]``.
    """

    mean: Transform
    velocities: Tensor
    log_scales: Tensor
    deviations: Array
    explained: Array
    scores: Array

    def shape(self, mode: int, amount: float) -> Transform:
        """The transform of the mean shape plus ``amount`` standard deviations of a mode; a batch of one."""
        parameters = decompose_affine(self.mean.affine)
        dim = len(self.mean.shape)
        parameters[:, -dim:] += amount * self.log_scales[mode]
        velocity = self.mean.velocity + amount * self.velocities[mode]
        return replace(self.mean, field=velocity, affine=compose_affine(parameters))


def shape_modes(transforms: Transform, foreground: Tensor, count: int, size: bool = True) -> ShapeModes:
    """Principal component analysis of transforms.

    Two transforms are as far apart as their velocities, in millimetres, in the root mean square over the anatomy: the
    field ``v`` without its rigid part and, with ``size``, the velocity ``diag(log s) x`` of the scales.

    Args:
        transforms: a batch of N ≥ 2.
        foreground: probability of the anatomy in the atlas, ``[*shape]``.
        count: number of modes K; fewer are returned where fewer explain everything, none where nothing varies.
        size: size is part of the shape; without it, the scaling of each axis is taken out like the rigid part.
    """
    dim = len(transforms.shape)
    half = list(transforms.velocity.shape[2:])
    sizes = [s * (n - 1) / (m - 1) for s, n, m in zip(transforms.spacing, transforms.shape, half, strict=True)]
    steps = torch.tensor(sizes, dtype=torch.float64).reshape([dim] + [1] * dim)
    axes = [torch.arange(m, dtype=torch.float64) - (m - 1) / 2 for m in half]
    places = torch.stack(torch.meshgrid(axes, indexing="ij")) * steps
    weights = _on_grid(foreground, half)

    field = _without(transforms.velocity.double() * steps, _poses(places, scalings=not size), weights)
    log_scale = decompose_affine(transforms.affine.double())[:, -dim:] * float(size)
    mean_field, mean_scale = field.mean(dim=0), log_scale.mean(dim=0)
    velocity = field + log_scale.reshape([-1, dim] + [1] * dim) * places
    features = ((velocity - velocity.mean(dim=0)) * weights.sqrt()).flatten(1)
    # Few cases, many voxels: the eigenvectors of the N × N matrix of inner products are the modes' scores.
    freedom = len(features) - 1
    values, vectors = torch.linalg.eigh(features @ features.T / freedom)
    total = values.clamp_min(0.0).sum().clamp_min(1e-12)
    order = [
        int(k)
        for k in values.argsort(descending=True)[:count]
        if values[k] > max(_LEAST_SHARE * total, _LEAST_VARIANCE)
    ]
    values, scores = values[order], vectors[:, order] * freedom**0.5
    combine = scores.T / freedom  # a mode for one standard deviation is the regression of the cases upon its scores

    parameters = torch.zeros(1, num_affine_parameters(dim), dtype=torch.float64)
    parameters[0, -dim:] = mean_scale
    return ShapeModes(
        replace(transforms, field=(mean_field / steps)[None], affine=compose_affine(parameters)),
        torch.einsum("kn,n...->k...", combine, field - mean_field) / steps,
        combine @ (log_scale - mean_scale),
        values.sqrt().numpy(),
        (values / total).numpy(),
        scores.numpy(),
    )


def _poses(places: Tensor, scalings: bool) -> Tensor:
    """Velocities ``[R, dim, *half]`` of translations, rotations and, if wanted, of scalings along each axis."""
    dim = len(places)
    fields = []
    for i in range(dim):
        fields.append(torch.zeros_like(places))
        fields[-1][i] = 1.0
        if scalings:
            fields.append(torch.zeros_like(places))
            fields[-1][i] = places[i]
        for j in range(i):
            fields.append(torch.zeros_like(places))
            fields[-1][i], fields[-1][j] = places[j], -places[i]
    return torch.stack(fields)


def _without(field: Tensor, poses: Tensor, weights: Tensor) -> Tensor:
    """Velocities ``[N, dim, *half]`` less what of them is a combination of ``poses``, by weighted least squares."""
    flat = (poses * weights.sqrt()).flatten(1)
    target = (field * weights.sqrt()).flatten(1)
    amounts = torch.linalg.lstsq(flat.T, target.T).solution
    return field - torch.einsum("rn,r...->n...", amounts, poses)


def _on_grid(foreground: Tensor, half: list[int]) -> Tensor:
    """The foreground on the velocity's grid, with a sum of one."""
    mode = "bilinear" if len(half) == 2 else "trilinear"
    weights = F.interpolate(foreground.double()[None, None], size=half, mode=mode, align_corners=True)[0, 0]
    return weights.clamp_min(0.0) / weights.clamp_min(0.0).sum().clamp_min(1e-12)
