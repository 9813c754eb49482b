# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.losses import LocalNormalizedCrossCorrelationLoss
from monai.networks.layers import GaussianFilter
from scipy.ndimage import gaussian_filter

from atlas_istn.registration.similarity import (
    LocalCorrelation,
    MultiscaleDice,
    MutualInformation,
    RobustError,
    SoftDice,
    correlation,
    squared_error,
)

Field = Callable[..., torch.Tensor]


def test_squared_error_sums_channels_and_averages_voxels() -> None:
    prediction = torch.zeros(2, 3, 4, 5)
    target = torch.zeros(2, 3, 4, 5)
    target[0] = 2.0
    target[1, 0, 0, 0] = 1.0
    torch.testing.assert_close(squared_error(prediction, target), torch.tensor([12.0, 1 / 20]))


def test_squared_error_does_not_depend_on_the_matrix_size(ring: Field) -> None:
    first, second = ring((16, 16)), ring((16, 16), shift=2.0)
    coarse = squared_error(first, second)
    fine = squared_error(*(z.repeat_interleave(2, 2).repeat_interleave(2, 3) for z in (first, second)))
    torch.testing.assert_close(fine, coarse)


def test_robust_error_is_the_squared_error_where_labelmaps_nearly_agree(ring: Field) -> None:
    labels = ring((24, 24))
    nearby = labels + 0.01 * torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1)
    # e = 2e-4 is 0.1 % of the scale; averaging loses what the window reaches beyond the border, a few per cent.
    torch.testing.assert_close(RobustError()(nearby, labels), squared_error(nearby, labels), rtol=0.1, atol=0)


def test_robust_error_bounds_what_clutter_costs_and_how_it_pulls() -> None:
    labels = torch.zeros(1, 2, 32, 32)
    labels[:, 0] = 1.0
    cluttered = labels.clone()
    cluttered[:, :, 8:24, 8:24] = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1)
    area = 16 * 16 / 32**2
    assert squared_error(cluttered, labels).item() == pytest.approx(2 * area)
    assert RobustError(scale=0.2)(cluttered, labels).item() < 0.2 * area * 1.6  # the window reaches beyond the box

    def pull(error: Any) -> float:
        prediction = labels.clone().requires_grad_()
        error(prediction, cluttered).sum().backward()
        return float(prediction.grad[0, 1, 16, 16].abs())

    assert pull(RobustError(scale=0.2)) < 0.02 * pull(squared_error)


@pytest.mark.parametrize("shape", [(20, 33), (12, 9, 16)])
def test_the_surroundings_of_a_robust_error_are_a_gaussian_filter(shape: tuple[int, ...]) -> None:
    prediction, target = torch.rand(2, 3, *shape), torch.rand(2, 3, *shape)
    error = (prediction - target).square().sum(dim=1, keepdim=True)
    blurred = GaussianFilter(len(shape), 1.5)(error)
    # With a large scale the error is not levelled off: what remains is the blur.
    torch.testing.assert_close(
        RobustError(scale=1e6, sigma=1.5)(prediction, target), blurred.flatten(1).mean(dim=1), rtol=1e-5, atol=0
    )
    levelled = (blurred / (1 + blurred / 0.2)).flatten(1).mean(dim=1)
    torch.testing.assert_close(RobustError(scale=0.2, sigma=1.5)(prediction, target), levelled, rtol=1e-5, atol=0)


ERRORS = [squared_error, RobustError(), correlation, LocalCorrelation(3), MutualInformation(), SoftDice()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: getattr(e, "__name__", type(e).__name__))
def test_every_error_is_one_of_cases_that_do_not_mix_and_has_right_gradients(error: Any, dim: int) -> None:
    shape = (6, 5, 4)[:dim]
    # Nearly hard labels: of very soft ones the soft Dice has its optimum elsewhere than where both are alike.
    moving, fixed = (10 * torch.rand(2, 2, 3, *shape, dtype=torch.float64)).softmax(dim=2).unbind()
    together = error(moving, fixed)
    assert together.shape == (2,)
    torch.testing.assert_close(error(moving[1:], fixed[1:]), together[1:])
    torch.testing.assert_close(error(moving[:1], fixed), error(moving[:1].expand_as(fixed), fixed))
    assert (error(fixed, fixed) <= together).all()
    if not isinstance(error, MutualInformation):  # MONAI's is single precision, which numerical derivatives would see
        assert torch.autograd.gradcheck(lambda m: error(m, fixed), (moving.requires_grad_(),))


def test_correlation_does_not_see_contrast_and_brightness() -> None:
    image = torch.rand(1, 2, 8, 9)
    torch.testing.assert_close(correlation(3 * image + 1, image), torch.zeros(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(correlation(-image, image), torch.full((1,), 2.0))
    noise = torch.rand(1, 1, 10, 10)
    expected = 1 - torch.corrcoef(torch.stack([noise.flatten(), noise.mT.flatten()]))[0, 1]
    torch.testing.assert_close(correlation(noise, noise.mT)[0], expected)


def test_local_correlation_is_that_of_monai(dim: int) -> None:
    moving, fixed = torch.rand(2, 3, 2, 9, *(8, 10)[: dim - 1]).unbind()
    loss = LocalNormalizedCrossCorrelationLoss(spatial_dims=dim, kernel_size=5, reduction="none")
    expected = 1 + loss(*(image.flatten(0, 1).unsqueeze(1) for image in (moving, fixed))).reshape(3, -1).mean(dim=1)
    torch.testing.assert_close(LocalCorrelation(5)(moving, fixed), expected)


def test_soft_dice_as_usual_and_as_printed() -> None:
    first, second = torch.zeros(1, 2, 10), torch.zeros(1, 2, 10)
    first[0, 1, :6] = second[0, 1, 3:9] = 1.0
    torch.testing.assert_close(SoftDice()(first, second), torch.tensor([1 - 6 / 12]), rtol=0, atol=1e-5)
    torch.testing.assert_close(SoftDice(half=True)(first, second), torch.tensor([1 - 3 / 12]), rtol=0, atol=1e-5)


def boxes(shift: int, size: int = 40) -> torch.Tensor:
    image = torch.zeros(1, 1, size, size)
    image[..., 10 + shift : 16 + shift, 10:16] = 1.0
    return image


def test_multiscale_dice_agrees_with_the_dice_where_nothing_is_blurred() -> None:
    first, second = boxes(0), boxes(2)
    torch.testing.assert_close(
        MultiscaleDice([0], [1.0, 1.0])(first, second), torch.tensor([1 - 24 / 36]), atol=1e-4, rtol=0
    )
    same = MultiscaleDice([0, 2, 8], [1.0, 1.0])(first, first)
    torch.testing.assert_close(same, torch.zeros(1), atol=1e-4, rtol=0)  # DiceLoss smooths by 1e-5


def test_multiscale_dice_pulls_structures_that_do_not_overlap() -> None:
    far, near = boxes(14), boxes(10)
    plain, coarse = MultiscaleDice([0], [1.0, 1.0]), MultiscaleDice([0, 8], [1.0, 1.0])
    assert plain(far, boxes(0)) == plain(near, boxes(0))
    assert coarse(far, boxes(0)) > coarse(near, boxes(0)) + 0.01


def test_a_blurred_structure_needs_no_more_than_one_voxel_in_each_standard_deviation() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (
        (torch.rand(1, 1, 12, 12, generator=generator) > 0.5).float().repeat_interleave(8, 2).repeat_interleave(8, 3)
        for _ in range(2)
    )
    for sigma in (2.0, 5.0, 8.0):
        blurred = [
            torch.from_numpy(gaussian_filter(image.numpy()[0, 0], sigma, mode="constant")) for image in (first, second)
        ]
        every = 1 - 2 * (blurred[0] * blurred[1]).sum() / sum(image.square().sum() for image in blurred)
        found = MultiscaleDice([sigma], [1.0, 1.0])(first, second)[0]
        # SciPy cuts its Gaussian at four standard deviations, too; what ends at a border is not band-limited.
        torch.testing.assert_close(found, every.float(), atol=3e-3, rtol=0)


def test_scales_are_millimetres_and_bounded_across_thick_slices() -> None:
    thin = MultiscaleDice([4], [2.0, 2.0, 2.0])
    assert thin.sigmas == [[2.0, 2.0, 2.0]]
    thick = MultiscaleDice([16], [2.0, 2.0, 5.0])
    assert thick.sigmas == [[8.0, 8.0, 2.0]]
