# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Joint label fusion against its closed form, and against sums over patches that are written out."""

from __future__ import annotations

import itertools

import pytest
import torch

from atlas_istn.fusion.atlases import WarpedAtlases
from atlas_istn.fusion.base import LabelFusion
from atlas_istn.fusion.joint import JointLabelFusion, VoteNetPlus, joint_weights
from atlas_istn.fusion.vote import PluralityVote


def test_weights_of_two_atlases_follow_the_closed_form() -> None:
    a, b, c, alpha = 0.7, 0.4, 0.25, 0.1
    first = (b + alpha - c) / (a + b + 2 * alpha - 2 * c)
    weights = joint_weights(torch.tensor([[a, c], [c, b]]), alpha)
    torch.testing.assert_close(weights, torch.tensor([first, 1 - first]))


def test_weights_of_three_atlases_follow_the_closed_form() -> None:
    errors = torch.tensor([[0.8, 0.3, 0.1], [0.3, 0.5, 0.2], [0.1, 0.2, 0.6]], dtype=torch.float64)
    (a, d, e), (_, b, f), (_, _, c) = (errors + 0.1 * torch.eye(3)).tolist()
    # The sums of the rows of the adjugate, by hand.
    rows = torch.tensor(
        [
            (b * c - f * f) + (e * f - d * c) + (d * f - e * b),
            (e * f - d * c) + (a * c - e * e) + (d * e - a * f),
            (d * f - e * b) + (d * e - a * f) + (a * b - d * d),
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(joint_weights(errors, 0.1), rows / rows.sum())


def test_negative_weights_are_none_and_the_others_sum_to_one() -> None:
    # An atlas that repeats the errors of a better one, larger: by the closed form it would count against it.
    weights = joint_weights(torch.tensor([[1.0, 3.0, 0.0], [3.0, 9.0, 0.0], [0.0, 0.0, 2.0]]), 0.01)
    assert weights[1] == 0
    assert weights.sum() == pytest.approx(1)


def atlas(image: torch.Tensor, label: int) -> tuple[torch.Tensor, torch.Tensor]:
    return image, torch.full(image.shape[1:], label)


def fuse(fusion: LabelFusion, target: torch.Tensor, *parts: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    images, labels = zip(*parts, strict=True)
    fused = fusion(WarpedAtlases(torch.stack(labels), torch.stack(images), target))
    return fused.soft()


def test_duplicated_atlases_share_their_weight_jointly_and_double_it_by_vote() -> None:
    target = torch.randn(1, 9, 10)
    first, second = atlas(target + 0.7 * torch.randn(1, 9, 10), 1), atlas(target + 0.7 * torch.randn(1, 9, 10), 2)
    joint = JointLabelFusion(1, 0, alpha=1e-4)
    single, double = fuse(joint, target, first, second), fuse(joint, target, first, second, second)
    torch.testing.assert_close(single, double, rtol=0, atol=0.02)
    vote = PluralityVote()
    torch.testing.assert_close(fuse(vote, target, first, second)[1], torch.full((9, 10), 1 / 2))
    torch.testing.assert_close(fuse(vote, target, first, second, second)[1], torch.full((9, 10), 2 / 3))


@pytest.mark.parametrize("squares", [False, True])
def test_joint_fusion_is_what_the_sums_over_patches_say(squares: bool) -> None:
    """One voxel in 2D with a search, two channels, written out in loops."""
    generator = torch.Generator().manual_seed(3)
    target = torch.randn(2, 15, 15, generator=generator)
    images = target + torch.randn(3, 2, 15, 15, generator=generator)
    labels = torch.randint(0, 3, (3, 15, 15), generator=generator)
    mask = torch.zeros(15, 15, dtype=torch.bool)
    mask[7, 7] = True
    fusion = JointLabelFusion(2, 1, alpha=0.2, beta=1.5, squares=squares)
    fused = fusion(WarpedAtlases(labels, images, target), mask)

    def patch(image: torch.Tensor, i: int, j: int) -> torch.Tensor:
        return image[..., i - 2 : i + 3, j - 2 : j + 3].flatten(-2).double()

    def normal(values: torch.Tensor) -> torch.Tensor:
        return (values - values.mean(-1, keepdim=True)) / values.std(-1, keepdim=True)

    contrast = target.std(dim=(1, 2)).double()
    differences, votes = [], []
    for image, label in zip(images, labels, strict=True):
        shifts = list(itertools.product((-1, 0, 1), repeat=2))

        def likeness(shift: tuple[int, int], image: torch.Tensor = image) -> float:
            a, t = patch(image, 7 + shift[0], 7 + shift[1]), patch(target, 7, 7)
            if squares:
                return -float((((a - t) / contrast[:, None]) ** 2).sum())
            return float((normal(a) * normal(t)).sum())

        i, j = (7 + step for step in max(shifts, key=likeness))
        differences.append((normal(patch(image, i, j)) - normal(patch(target, 7, 7))).abs().flatten())
        votes.append(int(label[i, j]))
    d = torch.stack(differences)
    matrix = (d @ d.T / 24) ** 1.5 + 0.2 * torch.eye(3)
    weights = torch.linalg.inv(matrix).sum(dim=1).clamp_min(0)
    expected = torch.zeros(3, dtype=torch.float64).index_add_(0, torch.tensor(votes), weights / weights.sum())
    torch.testing.assert_close(fused.posterior[0].double(), expected, rtol=1e-4, atol=1e-5)


def test_a_posterior_is_the_mean_over_the_patches_that_cover_a_voxel() -> None:
    target = torch.randn(1, 12, 12)
    images = target + torch.randn(3, 1, 12, 12)
    labels = torch.randint(0, 2, (3, 12, 12))
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[5:7, 5:9] = True
    given = WarpedAtlases(labels, images, target)
    votes = JointLabelFusion(1, 0).vote(given, mask.flatten().nonzero()[:, 0], torch.tensor([0, 1]))
    # Voxel (5, 5), the first, is covered by the patches of itself, of (5, 6), (6, 5) and (6, 6).
    expected = votes.weights.reshape(2, 4, 3)[:2, :2].mean(dim=(0, 1)) @ labels[:, 5, 5].float()
    torch.testing.assert_close(votes.posterior[0, 1], expected)


def test_votenet_plus_weighs_by_mean_probabilities_of_being_wrong() -> None:
    probabilities = torch.rand(3, 9, 9)
    labels = torch.randint(0, 2, (3, 9, 9))
    mask = torch.zeros(9, 9, dtype=torch.bool)
    mask[4, 4] = True
    votes = VoteNetPlus(1, alpha=0.1).vote(
        WarpedAtlases(labels, probabilities=probabilities), mask.flatten().nonzero()[:, 0], torch.tensor([0, 1])
    )
    wrong = 1 - probabilities[:, 3:6, 3:6].flatten(1)
    errors = wrong @ wrong.T / 9
    errors[range(3), range(3)] = wrong.mean(dim=1)
    torch.testing.assert_close(votes.weights[0], joint_weights(errors, 0.1))
