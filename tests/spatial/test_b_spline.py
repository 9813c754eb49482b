# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from atlas_istn.spatial import (
    BSpline,
    DisplacementField,
    Transform,
    compose_affine,
    control_points,
    identity_grid,
    invert_displacement,
    num_affine_parameters,
    sample_displacement,
)

SHAPES = {2: (23, 30), 3: (14, 19, 12)}


def random_field(dim: int, size: float = 1.0) -> torch.Tensor:
    points = control_points(SHAPES[dim], 5)
    return size * torch.randn(1, dim, *points, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_it_is_the_transform_of_itk(dim: int) -> None:
    """The same coefficients, on voxels that are no cubes: displacements agree to a thousandth of a voxel."""
    shape, spacing = SHAPES[dim], np.array([1.0, 2.0, 0.7][:dim])
    field = random_field(dim)
    image = sitk.Image([int(n) for n in shape], sitk.sitkFloat32)
    image.SetSpacing(spacing.tolist())
    mesh = [n - 3 for n in field.shape[2:]]
    theirs = sitk.BSplineTransformInitializer(image, mesh, 3)
    # ITK's domain ends at the last voxel's centre, its coefficients are millimetres, x fastest.
    theirs.SetTransformDomainOrigin([0.0] * dim)
    theirs.SetTransformDomainPhysicalDimensions(((np.array(shape) - 1) * spacing).tolist())
    theirs.SetTransformDomainMeshSize(mesh)
    coefficients = field[0].numpy() * spacing.reshape(-1, *[1] * dim)
    theirs.SetParameters(np.concatenate([c.T.ravel() for c in coefficients]).tolist())
    ours = BSpline(shape).displacement(field, inverse=True)[0]
    for index in np.random.default_rng(0).integers(1, np.array(shape) - 1, size=(40, dim)):
        point = index * spacing
        expected = (np.array(theirs.TransformPoint(point.tolist())) - point) / spacing
        np.testing.assert_allclose(ours[(slice(None), *index)].numpy(), expected, atol=1e-3)


def test_constant_and_linear_coefficients_are_reproduced(dim: int) -> None:
    """A partition of unity of first order: c(i) = a + b i gives the same line."""
    shape = SHAPES[dim]
    points = control_points(shape, 5)
    lattice = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float64) - 1 for n in points], indexing="ij"))
    cells = torch.tensor([(s - 1) / (n - 3) for s, n in zip(shape, points, strict=True)], dtype=torch.float64)
    field = (lattice * cells.reshape(-1, *[1] * dim))[None]  # the place of each control point
    found = BSpline(shape).displacement(field, inverse=True)
    torch.testing.assert_close(found, identity_grid(list(shape), found.device).double(), rtol=0, atol=1e-9)


def test_gradients_are_right(dim: int) -> None:
    shape = (5, 4, 6)[:dim]
    field = torch.randn(1, dim, *control_points(shape, 2), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: BSpline(shape).displacement(f, True), (field,))


@pytest.mark.parametrize("model", ["b_spline", "displacement"])
def test_the_inverse_undoes_the_map_within_the_image(dim: int, model: str) -> None:
    shape = SHAPES[dim]
    kind = BSpline(shape) if model == "b_spline" else DisplacementField()
    field = random_field(dim, 0.5)
    if model == "displacement":
        field = BSpline(shape).displacement(field, True)
    transform = Transform(field, torch.eye(dim, dim + 1).double()[None], shape, (1.0,) * dim, kind)
    back, there = transform.deformation(), transform.deformation(inverse=True)
    points = identity_grid(list(shape), back.device) + back
    residual = (sample_displacement(there, points) + back).norm(dim=1)
    assert residual.max() < 1e-4
    torch.testing.assert_close(invert_displacement(there), back)


def test_number_of_control_points() -> None:
    assert control_points((64, 64), 10) == [10, 10]  # cells of 9 voxels: 63 / 7
    assert control_points((11, 12), 10) == [4, 5]


def test_shear_is_the_product_of_its_factors(dim: int) -> None:
    """ISTN, eq. (3), with the matrices written out by hand in 2D; in 3D its determinant and singular values."""
    count = num_affine_parameters(dim, shear=True)
    parameters = torch.randn(3, count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    linear = compose_affine(parameters)[..., :dim]
    scales = parameters[:, dim + (1 if dim == 2 else 3) :][:, :dim].exp()
    torch.testing.assert_close(torch.linalg.det(linear), scales.prod(dim=1))
    torch.testing.assert_close(torch.linalg.svdvals(linear), scales.sort(dim=1, descending=True).values)
    if dim == 2:
        for row, found in zip(parameters, linear, strict=True):

            def turn(angle: torch.Tensor) -> torch.Tensor:
                return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).reshape(2, 2)

            expected = turn(row[2]) @ turn(-row[5]) @ torch.diag(row[3:5].exp()) @ turn(row[5])
            torch.testing.assert_close(found, expected)
    none = parameters.clone()
    none[:, -(1 if dim == 2 else 3) :] = 0
    torch.testing.assert_close(compose_affine(none), compose_affine(none[:, : num_affine_parameters(dim)]))
