# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Composition of an affine map with a diffeomorphism (Atlas-ISTN, eq. 7-8).

``Φ = T ∘ φ`` maps points of the atlas grid into the subject and resamples a subject in atlas space, ``z ∘ Φ``.
``Φ⁻¹ = φ⁻¹ ∘ T⁻¹`` maps points of the subject grid into the atlas and resamples the atlas, ``ya ∘ Φ⁻¹``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .affine import apply_affine, invert_affine
from .jacobian import jacobian_determinant
from .sampling import identity_grid, resize_displacement, sample_displacement, warp
from .velocity import exponential

__all__ = ["Transform", "atlas_to_subject_displacement", "subject_to_atlas_displacement"]


def subject_to_atlas_displacement(deformation: Tensor, affine: Tensor, spacing: list[float]) -> Tensor:
    """Displacement of ``Φ = T ∘ φ``, which warps a subject to atlas space.

    Args:
        deformation: ``[B, dim, *shape]``, displacement of φ on the atlas grid, in voxels.
        affine: ``[B, dim, dim + 1]``, T in centred coordinates.
        spacing: voxel size along each axis.

    Returns:
        ``[B, dim, *shape]`` in voxels.
    """
    shape = list(deformation.shape[2:])
    identity = identity_grid(shape, deformation.device)
    return apply_affine(affine, identity + deformation, spacing, shape) - identity


def atlas_to_subject_displacement(inverse_deformation: Tensor, affine: Tensor, spacing: list[float]) -> Tensor:
    """Displacement of ``Φ⁻¹ = φ⁻¹ ∘ T⁻¹``, which warps the atlas to subject space.

    Points that T⁻¹ sends outside the grid are moved by the border's displacement, so that Φ⁻¹ stays invertible there.

    Args:
        inverse_deformation: ``[B, dim, *shape]``, displacement of φ⁻¹ on the atlas grid, in voxels.
        affine: ``[B, dim, dim + 1]``, T (not its inverse) in centred coordinates.
        spacing: voxel size along each axis.

    Returns:
        ``[B, dim, *shape]`` in voxels.
    """
    shape = list(inverse_deformation.shape[2:])
    identity = identity_grid(shape, inverse_deformation.device)
    points = apply_affine(invert_affine(affine), identity, spacing, shape)
    return points + sample_displacement(inverse_deformation, points) - identity


@dataclass(frozen=True)
class Transform:
    """A batch of maps between atlas and subject, held as the parameters that generate both directions.

    Attributes:
        velocity: ``[B, dim, *velocity_shape]`` in voxels of its own (coarser) grid, over the extent of the image.
        affine: ``[B, dim, dim + 1]``, T in centred coordinates.
        shape: spatial shape of the image and atlas grid.
        spacing: voxel size of that grid.
        squarings: squarings of the exponential.
    """

    velocity: Tensor
    affine: Tensor
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    squarings: int = 5

    def deformation(self, inverse: bool = False) -> Tensor:
        """Displacement of φ (or φ⁻¹) on the velocity's own grid, in voxels of that grid: what the regulariser sees."""
        return exponential(-self.velocity if inverse else self.velocity, self.squarings)

    def displacement(self, inverse: bool = False) -> Tensor:
        """Displacement ``[B, dim, *shape]`` of φ (or φ⁻¹) on the atlas grid, in its voxels."""
        return resize_displacement(self.deformation(inverse), list(self.shape))

    def subject_to_atlas(self, deformation: Tensor | None = None) -> Tensor:
        """Displacement ``[B, dim, *shape]`` of Φ in voxels; ``deformation`` reuses φ where it is already known."""
        deformation = self.deformation() if deformation is None else deformation
        return subject_to_atlas_displacement(
            resize_displacement(deformation, list(self.shape)), self.affine, list(self.spacing)
        )

    def atlas_to_subject(self, deformation: Tensor | None = None) -> Tensor:
        """Displacement ``[B, dim, *shape]`` of Φ⁻¹ in voxels; ``deformation`` reuses φ⁻¹ where it is already known."""
        deformation = self.deformation(inverse=True) if deformation is None else deformation
        return atlas_to_subject_displacement(
            resize_displacement(deformation, list(self.shape)), self.affine, list(self.spacing)
        )

    def to_atlas(self, subject: Tensor) -> Tensor:
        """Warp ``[B, C, *shape]`` from subject to atlas space, ``z ∘ Φ``."""
        return warp(subject, self.subject_to_atlas())

    def to_subject(self, atlas: Tensor) -> Tensor:
        """Warp ``[B or 1, C, *shape]`` from atlas to subject space, ``ya ∘ Φ⁻¹``."""
        return warp(atlas, self.atlas_to_subject())

    def jacobian_determinant(self) -> Tensor:
        """Determinant of Φ⁻¹'s Jacobian on the subject grid, ``[B, *shape]``."""
        return jacobian_determinant(self.atlas_to_subject())

    def detach(self) -> Transform:
        """The same transform outside the autograd graph."""
        return Transform(self.velocity.detach(), self.affine.detach(), self.shape, self.spacing, self.squarings)

    def __len__(self) -> int:
        return self.velocity.shape[0]

    def __getitem__(self, index: int | slice) -> Transform:
        """One case (kept as a batch of one) or several."""
        chosen = slice(index, index + 1) if isinstance(index, int) else index
        return Transform(self.velocity[chosen], self.affine[chosen], self.shape, self.spacing, self.squarings)

    @classmethod
    def cat(cls, transforms: list[Transform]) -> Transform:
        """One batch of several batches over the same grid."""
        first = transforms[0]
        velocity = torch.cat([t.velocity for t in transforms])
        affine = torch.cat([t.affine for t in transforms])
        return cls(velocity, affine, first.shape, first.spacing, first.squarings)
