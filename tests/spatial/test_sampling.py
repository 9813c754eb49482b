# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from atlas_istn.spatial import identity_grid, resize_displacement, sample_displacement, warp

SHAPES = {2: (13, 10), 3: (9, 7, 8)}


def test_grid_counts_voxels_along_the_array_axes(dim: int) -> None:
    grid = identity_grid(list(SHAPES[dim]), torch.device("cpu"))
    assert np.array_equal(grid[0].numpy(), np.indices(SHAPES[dim]))


def test_grid_first_made_under_inference_mode_serves_autograd() -> None:
    with torch.inference_mode():
        identity_grid([5, 3], torch.device("cpu"))
    points = (identity_grid([5, 3], torch.device("cpu")) * torch.ones((), requires_grad=True)).sum()
    points.backward()


def test_zero_displacement_returns_the_image(dim: int) -> None:
    image = torch.rand(2, 3, *SHAPES[dim])
    warped = warp(image, torch.zeros(2, dim, *SHAPES[dim]))
    # Voxel coordinates pass through [-1, 1] and back: a few units of float32's last place at coordinates up to 13.
    torch.testing.assert_close(warped, image, rtol=0, atol=1e-5)


def test_whole_voxel_translation_shifts_along_its_axis(dim: int) -> None:
    image = torch.rand(1, 1, *SHAPES[dim])
    for axis, size in enumerate(SHAPES[dim]):
        displacement = torch.zeros(1, dim, *SHAPES[dim])
        displacement[:, axis] = 2
        expected = np.take(image.numpy(), np.minimum(np.arange(size) + 2, size - 1), axis + 2)
        np.testing.assert_allclose(warp(image, displacement).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("padding", "scipy_mode"), [("border", "nearest"), ("zeros", "grid-constant")])
@pytest.mark.parametrize(("mode", "order"), [("bilinear", 1), ("nearest", 0)])
def test_warp_agrees_with_scipy(dim: int, padding: str, scipy_mode: str, mode: str, order: int) -> None:
    shape = SHAPES[dim]
    image = torch.rand(2, 2, *shape, dtype=torch.float64)
    displacement = 3 * torch.randn(2, dim, *shape, dtype=torch.float64)
    warped = warp(image, displacement, mode, padding).numpy()
    points = np.indices(shape) + displacement.numpy()
    for case in range(2):
        for channel in range(2):
            expected = map_coordinates(image[case, channel].numpy(), points[case], order=order, mode=scipy_mode)
            np.testing.assert_allclose(warped[case, channel], expected, atol=1e-12)


def test_one_image_is_shared_by_all_displacements(dim: int) -> None:
    image, displacement = torch.rand(1, 2, *SHAPES[dim]), torch.randn(3, dim, *SHAPES[dim])
    assert torch.equal(warp(image, displacement), warp(image.expand(3, *image.shape[1:]), displacement))


def test_a_coarser_grid_samples_where_it_says() -> None:
    image = torch.rand(1, 1, 12, 12)
    # On a grid of 4 x 4 the displaced point of node p is 3 p, so every third voxel is picked.
    displacement = 2 * identity_grid([4, 4], image.device)
    torch.testing.assert_close(warp(image, displacement), image[..., ::3, ::3], rtol=0, atol=1e-5)


def test_displacement_continues_beyond_the_border() -> None:
    field = torch.rand(1, 2, 6, 6)
    points = torch.tensor([[-4.0, 9.0], [-1.0, 8.0]]).reshape(1, 2, 2, 1)  # (-4, -1) and (9, 8)
    sampled = sample_displacement(field, points)[0, :, :, 0]
    torch.testing.assert_close(sampled, torch.stack([field[0, :, 0, 0], field[0, :, 5, 5]], dim=1))


def test_resizing_a_linear_field_is_exact(dim: int) -> None:
    """A linear map in units of the whole extent is the same map on every grid."""
    matrix = torch.tensor([[0.3, -0.2, 0.1], [0.15, -0.1, 0.4], [-0.3, 0.2, 0.25]], dtype=torch.float64)[:dim, :dim]

    def linear_field(shape: tuple[int, ...]) -> torch.Tensor:
        size = torch.tensor(shape, dtype=torch.float64).reshape(1, dim, *[1] * dim) - 1
        relative = identity_grid(list(shape), torch.device("cpu")) / size - 0.5
        return torch.einsum("ij,bj...->bi...", matrix, relative) * size

    for target in [(21, 17, 15), (5, 6, 4), (9, 7, 8)]:
        resized = resize_displacement(linear_field(SHAPES[dim]), list(target[:dim]))
        # PyTorch may compute the weights of interpolation in float32: units of its last place, times 21 voxels.
        torch.testing.assert_close(resized, linear_field(target[:dim]), rtol=0, atol=1e-5)


def test_gradients_are_right(dim: int) -> None:
    shape = (4, 5, 3)[:dim]
    image = torch.rand(1, 2, *shape, dtype=torch.float64, requires_grad=True)
    # Displacements of 0.2 to 0.7 voxel stay away from voxel centres, where linear interpolation has a kink.
    displacement = (0.2 + 0.5 * torch.rand(1, dim, *shape, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(warp, (image, displacement))
    assert torch.autograd.gradcheck(lambda u: resize_displacement(u, [7, 6, 5][:dim]), (displacement,))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_is_sampled_in_float32(
    precision: torch.dtype, smooth_field: Callable[..., torch.Tensor]
) -> None:
    image, displacement = torch.rand(1, 1, 16, 16).to(precision), smooth_field((16, 16), 4.0).to(precision)
    warped = warp(image, displacement)
    assert warped.dtype == torch.float32
    assert torch.equal(warped, warp(image.float(), displacement.float()))
