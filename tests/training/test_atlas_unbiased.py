# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Shape and sharpness of the atlas on cohorts whose mean shape is known.

The cohorts are ellipses whose log-axes and centres have a known mean. The atlas starts as the first case, which is far
from that mean, and is rebuilt from registrations to the labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from atlas_istn.errors import InputError
from atlas_istn.inferers.refine import RefinementInferer
from atlas_istn.networks import AtlasISTN
from atlas_istn.spatial import Transform, compose_affine
from atlas_istn.training.atlas_builder import AtlasBuilder, _sharpen

SHAPE = (48, 40)
RADIUS = 10.0  # geometric mean of each axis over the cohort
Build = Callable[..., AtlasISTN]


def ellipse(centre: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Soft labelmap [2, *SHAPE] of an ellipse; its centre is in voxels from the middle of the image."""
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in SHAPE]
    points = torch.stack(torch.meshgrid(axes, indexing="ij")) - centre[:, None, None]
    distance = (points / log_scale.exp()[:, None, None]).norm(dim=0)
    inside = torch.sigmoid(2 * (RADIUS - distance))
    return torch.stack([1 - inside, inside])


def moments(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre in voxels from the middle, and log of the axes over RADIUS, of a soft ellipse [1, 2, *SHAPE]."""
    inside = labels[0, 1]
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in SHAPE]
    points = torch.stack(torch.meshgrid(axes, indexing="ij"))
    mass = inside.sum()
    centre = (points * inside).sum(dim=(1, 2)) / mass
    variance = ((points - centre[:, None, None]).square() * inside).sum(dim=(1, 2)) / mass
    return centre, (2 * variance.sqrt() / RADIUS).log()


def cohort() -> tuple[torch.Tensor, torch.Tensor]:
    """Centres and log-scales [9, 2] of mean zero; the first case is the one farthest off."""
    centres = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    log_scales = 0.1 * torch.randn(9, 2, generator=torch.Generator().manual_seed(1))
    centres[0], log_scales[0] = torch.tensor([4.0, -3.0]), torch.tensor([0.3, -0.2])
    centres[1:] -= centres.sum(dim=0) / 8
    log_scales[1:] -= log_scales.sum(dim=0) / 8
    return centres, log_scales


def batches(labels: list[torch.Tensor], size: int = 4) -> list[dict[str, Any]]:
    parts = [torch.stack(labels[start : start + size]) for start in range(0, len(labels), size)]
    return [{"image": part[:, 1:], "label": part} for part in parts]


def rebuild(network: AtlasISTN, labels: list[torch.Tensor], rounds: int, **options: Any) -> torch.Tensor:
    """The atlas labels after some rounds that start from the first case."""
    network.atlas_labels.copy_(labels[0])
    builder = AtlasBuilder(network, batches(labels), **options)
    for _ in range(rounds):
        builder.rebuild(RefinementInferer(iterations=50, learning_rate=0.1, regularisation=0.1))
    torch.testing.assert_close(network.atlas_labels.sum(dim=1), torch.ones(1, *SHAPE), atol=1e-4, rtol=0)
    return network.atlas_labels


def test_the_unbiased_atlas_recovers_the_mean_shape_and_the_papers_rule_does_not(tiny_network: Build) -> None:
    centres, log_scales = cohort()
    labels = [ellipse(centre, scale) for centre, scale in zip(centres, log_scales, strict=True)]
    truth = moments(ellipse(torch.zeros(2), torch.zeros(2))[None])
    error = {}
    for shape in ("paper", "unbiased"):
        centre, log_axes = moments(rebuild(tiny_network(SHAPE), labels, 2, shape=shape))
        error[shape] = (centre - truth[0], log_axes - truth[1])
    # The first case is off by (4, -3) voxels and by (0.3, -0.2) in the logarithm of its axes: the paper's rule keeps
    # all of it. Registration to soft edges leaves 0.1 voxel and 3 %.
    torch.testing.assert_close(error["paper"][0], centres[0], atol=0.2, rtol=0)
    torch.testing.assert_close(error["paper"][1], log_scales[0], atol=0.05, rtol=0)
    assert error["unbiased"][0].abs().max() < 0.1
    assert error["unbiased"][1].abs().max() < 0.03


def fixed_transforms() -> Transform:
    """Maps of four cases whose mean is a shift by (3, -2), a scale by exp(0.1) along the first axis, and a velocity."""
    parameters = torch.tensor([3.0, -2.0, 0.0, 0.1, 0.0]) + torch.tensor(
        [[2.0, 1.0, 0.2, 0.1, 0.0], [-2.0, 0.0, -0.2, -0.1, 0.1], [0.0, -1.0, 0.1, 0.0, -0.1], [0.0, 0.0, -0.1, 0, 0]]
    )
    velocity = torch.tensor([0.8, -0.3, 0.3, 0.0]).reshape(4, 1, 1, 1).expand(4, 2, SHAPE[0] // 2, SHAPE[1] // 2)
    return Transform(velocity, compose_affine(parameters), SHAPE, (1.0, 1.0))


class Fixed(AtlasBuilder):
    """Takes the transforms that it is given, batch by batch."""

    def fixed(self, size: int) -> None:
        transforms = fixed_transforms()
        parts = iter([transforms[start : start + size] for start in range(0, 4, size)])
        self._set(self._mean(lambda image, labels: next(parts)))


@pytest.mark.parametrize("size", [1, 4])
def test_the_mean_map_of_the_cohort_is_taken_out_of_the_mean_of_the_warped_cases(
    tiny_network: Build, size: int
) -> None:
    # The cases are one ellipse, seen through four maps: in subject space, they are its images under these maps.
    transforms = fixed_transforms()
    start = ellipse(torch.zeros(2), torch.zeros(2))[None]
    labels = list(transforms.to_fixed(start.expand(4, -1, -1, -1)))
    network = tiny_network(SHAPE)
    Fixed(network, batches(labels, size), shape="unbiased").fixed(size)
    # v̄ is 0.2 voxels of the half-resolution grid along both axes, which share the extent of the whole one.
    bend = 0.2 * torch.tensor([(n - 1) / (n // 2 - 1) for n in SHAPE])
    centre, log_axes = moments(network.atlas_labels)
    before = moments(start)
    # The ellipse goes where the mean map takes it. Three linear interpolations widen its edge.
    expected = torch.tensor([3.0, -2.0]) + bend * torch.tensor([0.1, 0.0]).exp()
    torch.testing.assert_close(centre, expected, atol=0.02, rtol=0)
    torch.testing.assert_close(log_axes - before[1], torch.tensor([0.1, 0.0]), atol=0.02, rtol=0)


def test_after_the_correction_the_mean_of_the_transforms_is_the_identity(tiny_network: Build) -> None:
    # Registered to the corrected atlas, case i has the map Φ_i ∘ Φ̄⁻¹: for pure shifts its mean is exactly zero.
    shifts = torch.tensor([[3.0, 1.0], [5.0, -1.0], [1.0, 3.0], [3.0, 5.0]])
    labels = [ellipse(shift, torch.zeros(2)) for shift in shifts]
    zeros = torch.zeros(4, 3)
    maps = replace(fixed_transforms(), field=torch.zeros(4, 2, 24, 20))
    maps = replace(maps, affine=compose_affine(torch.cat([shifts, zeros], dim=1)))
    network = tiny_network(SHAPE)
    builder = AtlasBuilder(network, batches(labels), shape="unbiased")
    builder._set(builder._mean(lambda image, labels: maps))
    torch.testing.assert_close(moments(network.atlas_labels)[0], shifts.mean(dim=0), atol=0.01, rtol=0)


def test_the_median_is_sharper_than_the_mean_where_a_case_is_badly_aligned(tiny_network: Build) -> None:
    labels = [ellipse(torch.zeros(2), torch.zeros(2)) for _ in range(8)]
    labels[3] = ellipse(torch.tensor([6.0, 0.0]), torch.tensor([0.0, 0.2]))
    still = replace(fixed_transforms(), field=torch.zeros(8, 2, 24, 20), affine=torch.eye(2, 3).expand(8, 2, 3))
    error = {}
    for average in ("mean", "median"):
        network = tiny_network(SHAPE)
        network.atlas_labels.copy_(torch.stack(labels).mean(dim=0))
        builder = AtlasBuilder(network, batches(labels, 8), average=average)
        for _ in range(3):
            builder._set(builder._mean(lambda image, labels: still))
        error[average] = float((network.atlas_labels[0] - labels[0]).abs().max())
    assert error["mean"] == pytest.approx(1 / 8, abs=0.01)  # the outlier's share
    assert error["median"] < 0.02


def test_sharpening_takes_back_the_blur_of_cases_that_are_not_quite_aligned(tiny_network: Build) -> None:
    shifts = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 2)  # a variance of 2/3 voxel² along each axis
    labels = [ellipse(shift, torch.zeros(2)) for shift in shifts]
    still = replace(fixed_transforms(), field=torch.zeros(9, 2, 24, 20), affine=torch.eye(2, 3).expand(9, 2, 3))
    truth = ellipse(torch.zeros(2), torch.zeros(2))[None]
    atlases = {}
    for sharpening in (0.0, 1 / 3):
        network = tiny_network(SHAPE)
        builder = AtlasBuilder(network, batches(labels, 9), sharpening=sharpening)
        builder._set(builder._mean(lambda image, labels: still))
        atlases[sharpening] = network.atlas_labels.clone()
    blurred, sharpened = ((atlas - truth).square().mean() for atlas in atlases.values())
    assert sharpened < 0.5 * blurred  # all of it only to first order
    # Still probabilities, of the same shape at the same place.
    assert atlases[1 / 3].min() >= 0
    torch.testing.assert_close(atlases[1 / 3].sum(dim=1), torch.ones(1, *SHAPE))
    torch.testing.assert_close(moments(atlases[1 / 3])[0], moments(truth)[0], atol=0.01, rtol=0)
    torch.testing.assert_close(atlases[1 / 3].argmax(dim=1), atlases[0.0].argmax(dim=1))


def test_what_is_flat_or_linear_is_as_sharp_as_can_be(dim: int) -> None:
    shape = (9, 8, 7)[:dim]
    ramp = torch.arange(9.0).reshape(9, *[1] * (dim - 1)).expand(shape)[None, None]
    inner = (..., *[slice(1, -1)] * dim)
    torch.testing.assert_close(_sharpen(ramp, 0.7)[inner], ramp[inner])
    torch.testing.assert_close(_sharpen(ramp**2, 0.7)[inner], ramp[inner] ** 2 - 0.7 * 2)  # the Laplacian of x² is 2


@pytest.mark.parametrize("sharpening", [-0.1, 1.5])
def test_sharpening_out_of_range_is_refused(tiny_network: Build, sharpening: float) -> None:
    with pytest.raises(InputError, match=f"atlas_sharpening must lie between 0 and 1, found {sharpening}"):
        AtlasBuilder(tiny_network(SHAPE), [], sharpening=sharpening)


@pytest.mark.parametrize("option", ["shape", "average"])
def test_an_unknown_rule_is_refused(tiny_network: Build, option: str) -> None:
    with pytest.raises(InputError, match=f"atlas_{option} must be .* found 'best'"):
        AtlasBuilder(tiny_network(SHAPE), [], **{option: "best"})
