# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.networks.layers import GaussianFilter

from atlas_istn.networks import AtlasISTN, JointForward
from atlas_istn.spatial import Transform, exponential, resize_displacement
from atlas_istn.training.losses import AtlasISTNLoss, RobustError, registration_terms, squared_error

SHAPES = {2: (32, 28), 3: (16, 20, 18)}
Build = Callable[..., AtlasISTN]
Field = Callable[..., torch.Tensor]


def transform_of(velocity: torch.Tensor, shape: tuple[int, ...]) -> Transform:
    dim = len(shape)
    affine = torch.eye(dim, dim + 1).expand(len(velocity), -1, -1)
    return Transform(velocity, affine, shape, (1.0,) * dim)


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


def test_a_perfect_case_costs_nothing(dim: int, ring: Field) -> None:
    atlas = ring(SHAPES[dim])
    still = transform_of(torch.zeros(2, dim, *[n // 2 for n in SHAPES[dim]]), SHAPES[dim])
    terms = registration_terms(still, atlas, atlas.expand(2, -1, *SHAPES[dim]))
    for name in ("a2s", "s2a", "regularisation"):
        torch.testing.assert_close(terms[name], torch.zeros(2), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("directions", "integrations"),
    [((True, False), [-1]), ((False, True), [1]), ((True, True), [-1, 1])],
    ids=["atlas to subject", "subject to atlas", "both"],
)
def test_only_directions_asked_for_are_integrated(
    directions: tuple[bool, bool],
    integrations: list[int],
    ring: Field,
    smooth_field: Field,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    velocity = smooth_field((8, 8), 2.0, sigma=2.0).float()
    integrated: list[int] = []

    def counted(v: torch.Tensor, squarings: int) -> torch.Tensor:
        integrated.append(1 if torch.equal(v, velocity) else -1)
        return exponential(v, squarings)

    monkeypatch.setattr("atlas_istn.spatial.transform.exponential", counted)
    terms = registration_terms(transform_of(velocity, (16, 16)), ring((16, 16)), ring((16, 16)), *directions)
    assert integrated == integrations
    assert set(terms) == {"regularisation"} | {name for name, on in zip(("a2s", "s2a"), directions, strict=True) if on}


def test_directions_point_where_they_say(dim: int, ring: Field) -> None:
    """A subject that is the atlas moved by 2 voxels: φ⁻¹ pulls the atlas there, φ the subject back."""
    atlas, subject = ring(SHAPES[dim], radius=0.25), ring(SHAPES[dim], shift=2.0, radius=0.25)
    # 2 voxels of the image on the half-resolution grid, corner centres shared.
    half = [n // 2 for n in SHAPES[dim]]
    shift = torch.full((1, dim, *SHAPES[dim]), 2.0)
    right = registration_terms(transform_of(resize_displacement(shift, half), SHAPES[dim]), atlas, subject)
    wrong = registration_terms(transform_of(resize_displacement(-shift, half), SHAPES[dim]), atlas, subject)
    for name in ("a2s", "s2a"):
        assert right[name] < 1e-4 < wrong[name]


def test_regularisation_does_not_depend_on_the_matrix_size(dim: int, ring: Field, smooth_field: Field) -> None:
    """The same physical velocity on a grid of twice the size costs the same."""
    coarse, fine = (17,) * dim, (33,) * dim
    velocity = smooth_field(coarse, 1.5, sigma=3.0).float()
    penalties = []
    for shape, field in [(coarse, velocity), (fine, resize_displacement(velocity, list(fine)))]:
        penalties.append(registration_terms(transform_of(field, shape), ring(shape), ring(shape))["regularisation"])
    # The finer field is linear between the nodes of the coarser, so only the border's share of the mean differs.
    torch.testing.assert_close(penalties[0], penalties[1], rtol=0.1, atol=0)


def test_cases_of_a_batch_do_not_mix(dim: int, ring: Field, smooth_field: Field) -> None:
    velocity = smooth_field(tuple(n // 2 for n in SHAPES[dim]), 2.0, sigma=3.0, batch=2).float()
    atlas, targets = ring(SHAPES[dim]), torch.cat([ring(SHAPES[dim], shift) for shift in (1.0, 3.0)])
    together = registration_terms(transform_of(velocity, SHAPES[dim]), atlas, targets)
    alone = registration_terms(transform_of(velocity[1:], SHAPES[dim]), atlas, targets[1:])
    for name, value in alone.items():
        torch.testing.assert_close(together[name][1:], value)


def test_omega_fades_in(tiny_network: Build) -> None:
    loss = AtlasISTNLoss(tiny_network((16, 16)), deformation_weight=2.0, fade_in_epoch=200)
    course = []
    for loss.epoch in (0, 200, 225, 10_000):
        course.append(loss.omega)
    expected = [2 / (1 + math.exp(8)), 1.0, 2 / (1 + math.exp(-1)), 2.0]  # eq. (24) with a width of 25 epochs
    assert course == pytest.approx(expected)


def test_omega_is_full_from_the_start_without_fade_in(tiny_network: Build) -> None:
    assert AtlasISTNLoss(tiny_network((16, 16)), deformation_weight=0.7).omega == 0.7


def test_loss_is_the_weighted_sum_of_its_terms(tiny_network: Build, ring: Field, smooth_field: Field) -> None:
    network = tiny_network((24, 24))
    labels = torch.cat([ring((24, 24), shift) for shift in (0.0, 2.0)])
    output = {
        "prediction": labels + 0.1,
        "velocity": smooth_field((12, 12), 2.0, sigma=3.0, batch=2).float(),
        "parameters": torch.zeros(2, 5),
    }
    loss = AtlasISTNLoss(network, regularisation=0.3, deformation_weight=0.7)
    value = loss(output, labels)
    terms = loss.terms
    torch.testing.assert_close(terms["segmentation"], torch.tensor(2 * 0.1**2))
    expected = terms["segmentation"] + 0.7 * (terms["a2s"] + terms["s2a"] + 0.3 * terms["regularisation"])
    torch.testing.assert_close(value, expected)


def test_gradients_reach_every_weight_and_leave_the_atlas(tiny_network: Build, ring: Field) -> None:
    network = tiny_network((24, 24))
    with torch.no_grad():  # at the start the last affine layer is zero, and nothing before it gets a gradient
        network.stn.affine_head[-1].weight.normal_(std=0.01)
    loss = AtlasISTNLoss(network)
    loss(JointForward(network)(torch.rand(2, 1, 24, 24)), ring((24, 24), 2.0).expand(2, -1, -1, -1)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert not network.atlas_labels.requires_grad
    assert not any(term.requires_grad for term in loss.terms.values())


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
