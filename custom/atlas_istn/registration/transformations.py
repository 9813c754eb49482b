# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Transformation models that a configuration chooses: where each begins, and which parameters of it are optimised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..spatial import (
    SQUARINGS,
    BSpline,
    DeformationModel,
    DisplacementField,
    Transform,
    TwoDisplacementFields,
    VelocityField,
    affine_matrix,
    control_points,
    num_affine_parameters,
    per_axis,
)
from .parameters import Build, FreeParameters, Parameters

__all__ = ["Affine", "Deformation", "Grid", "Transformation"]

_KINDS = ("rigid", "affine", "shear")
_DEFORMATIONS = ("velocity", "displacement", "displacements", "b_spline")


@dataclass(frozen=True)
class Grid:
    """A grid on which both images of a registration lie.

    Attributes:
        shape: its spatial shape.
        spacing: size of a voxel along each axis, in millimetres.
        device: where its tensors live.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (a value)

    @property
    def dim(self) -> int:
        """2 or 3."""
        return len(self.shape)


class Transformation(ABC):
    """A family of maps, described by raw parameters: tensors that an optimiser moves or a network predicts."""

    @property
    @abstractmethod
    def rates(self) -> tuple[float, ...]:
        """Step size of Adam for each tensor."""

    @abstractmethod
    def initial(self, batch: int, grid: Grid) -> tuple[Tensor, ...]:
        """Return the raw parameters of as many identities: a field ``[B, dim, *nodes]``, affine ones ``[B, P]``."""

    @abstractmethod
    def build(self, grid: Grid) -> Build:
        """Return what makes the transforms of raw parameters."""

    def begin(self, batch: int, grid: Grid) -> Parameters:
        """Return the parameters of as many identities, to be optimised."""
        return self.resume(self.initial(batch, grid), grid)

    def resume(self, state: Sequence[Tensor], grid: Grid) -> Parameters:
        """Return given raw parameters, to be optimised further."""
        return FreeParameters(state, self.rates, self.build(grid))


@dataclass(frozen=True)
class Affine(Transformation):
    """Rigid, affine or sheared maps (Atlas-ISTN, eq. 1; ISTN, eq. 3), every parameter smoothly bounded.

    Attributes:
        kind: ``"rigid"`` (translation, rotation), ``"affine"`` (and a scale for each axis) or ``"shear"`` (and the
            axes of scaling).
        max_translation: bound in millimetres; None for half the extent.
        max_rotation: bound of each component of the rotation vectors, in radians.
        max_log_scale: bound of the logarithm of each scale.
        rate: step size of Adam, in units of the bounds: raw parameters r give ``bound · tanh(r)``.

    Raises:
        InputError: an unknown kind.
    """

    kind: str = "affine"
    max_translation: float | None = None
    max_rotation: float = 0.785
    max_log_scale: float = 1.0
    rate: float = 0.01

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise InputError(f"kind of an affine map: expected one of {', '.join(_KINDS)}, found '{self.kind}'.")

    @property
    def rates(self) -> tuple[float, ...]:
        """One: all parameters are in units of their bounds."""
        return (self.rate,)

    def initial(self, batch: int, grid: Grid) -> tuple[Tensor, ...]:
        """Return raw parameters ``[B, P]`` of identities."""
        start = torch.zeros(batch, num_affine_parameters(grid.dim, self.kind == "shear"), device=grid.device)
        if self.kind == "shear":
            # Where all scales are equal, no turn of their axes changes anything, and no gradient would ever reach it.
            start[:, -1 if grid.dim == 2 else -3 :] = 0.1
        return (start,)

    def build(self, grid: Grid) -> Build:
        """Return what makes transforms of raw parameters ``[B, P]``."""
        matrix = self.matrix(grid)
        return lambda parameters: Transform(None, matrix(parameters), grid.shape, grid.spacing)

    def matrix(self, grid: Grid) -> Callable[[Tensor], Tensor]:
        """Return what makes matrices ``[B, dim, dim + 1]`` in centred millimetres of raw parameters ``[B, P]``."""
        extent = torch.tensor([(n - 1) * s / 2 for n, s in zip(grid.shape, grid.spacing, strict=True)])
        angles, axes = torch.ones(1 if grid.dim == 2 else 3), torch.ones(grid.dim)
        translation = extent if self.max_translation is None else self.max_translation * axes
        scale = self.max_log_scale * axes * (self.kind != "rigid")
        turn = [self.max_rotation * angles] if self.kind == "shear" else []
        limits = torch.cat([translation, self.max_rotation * angles, scale, *turn]).to(grid.device)
        return lambda parameters: affine_matrix(parameters * limits, limits)


@dataclass(frozen=True)
class Deformation(Transformation):
    """Non-rigid maps, behind an affine one where there is one.

    Attributes:
        kind: ``"velocity"`` (stationary, diffeomorphic), ``"displacement"`` (free), ``"displacements"`` (a free one for
            each direction) or ``"b_spline"`` (cubic).
        distance: of the nodes of the field, in voxels of the image: 2 for a velocity at half resolution, 1 for a free
            displacement, some for a spline.
        affine: the map that acts first when the moving image is resampled; None for none.
        squarings: of a velocity.
        max_displacement: bound in millimetres of each component of the field's vectors, of a spline its coefficients,
            as ``bound · tanh(· / bound)``; None for none.
        rate: step size of Adam, in voxels of the field's own grid (of a spline: of the image).

    Raises:
        InputError: an unknown kind, or nodes that lie closer than voxels.
    """

    kind: str = "velocity"
    distance: float = 2.0
    affine: Affine | None = None
    squarings: int = SQUARINGS
    max_displacement: float | None = None
    rate: float = 0.05

    def __post_init__(self) -> None:
        if self.kind not in _DEFORMATIONS:
            known = ", ".join(_DEFORMATIONS)
            raise InputError(f"kind of a deformation: expected one of {known}, found '{self.kind}'.")
        if self.distance < 1:
            raise InputError(f"distance of the nodes of a field: expected at least 1 voxel, found {self.distance}.")

    @property
    def rates(self) -> tuple[float, ...]:
        """That of the field, and of the affine part where there is one."""
        return (self.rate, *(self.affine.rates if self.affine else ()))

    def initial(self, batch: int, grid: Grid) -> tuple[Tensor, ...]:
        """Return the field and the affine parameters, where there are any, of identities."""
        fields = 2 if self.kind == "displacements" else 1
        field = torch.zeros(batch, fields * grid.dim, *self._nodes(grid.shape), device=grid.device)
        return (field, *(self.affine.initial(batch, grid) if self.affine else ()))

    def build(self, grid: Grid) -> Build:
        """Return what makes transforms of a field and affine parameters, where there are any."""
        model = self._model(grid.shape)
        still = torch.eye(grid.dim, grid.dim + 1, device=grid.device)[None]
        matrix = self.affine.matrix(grid) if self.affine else None

        def make(field: Tensor, *parameters: Tensor) -> Transform:
            affine = matrix(parameters[0]) if matrix else still.expand(len(field), -1, -1)
            return Transform(self._bounded(field, grid), affine, grid.shape, grid.spacing, model)

        return make

    def _bounded(self, field: Tensor, grid: Grid) -> Tensor:
        if self.max_displacement is None:
            return field
        nodes = grid.shape if self.kind == "b_spline" else field.shape[2:]
        sizes = [s * (n - 1) / (m - 1) for n, m, s in zip(grid.shape, nodes, grid.spacing, strict=True)]
        limits = [self.max_displacement / size for size in sizes] * (field.shape[1] // grid.dim)
        limit = per_axis(limits, field).reshape(-1, *[1] * grid.dim)
        return limit * torch.tanh(field / limit)

    def _model(self, shape: tuple[int, ...]) -> DeformationModel:
        if self.kind == "velocity":
            return VelocityField(self.squarings)
        if self.kind == "b_spline":
            return BSpline(shape)
        return DisplacementField() if self.kind == "displacement" else TwoDisplacementFields()

    def _nodes(self, shape: Sequence[int]) -> list[int]:
        if self.kind == "b_spline":
            return control_points(shape, self.distance)
        return [max(2, round(n / self.distance)) for n in shape]
