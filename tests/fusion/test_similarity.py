# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Votes by similarity of patches: a learned one across contrasts, and that of the neighbourhood."""

from __future__ import annotations

import pytest
import torch

from atlas_istn.errors import InputError
from atlas_istn.fusion.atlases import WarpedAtlases
from atlas_istn.fusion.non_local import NonLocalVote
from atlas_istn.fusion.similarity import LearnedVote, take_patches
from atlas_istn.fusion.vote import PluralityVote
from atlas_istn.networks.similarity import SimilarityNetwork
from atlas_istn.training.episodes import SimilarityLoss, draw_episodes, label_likeness

PATCH = (7, 7)


def phantom(shift: tuple[int, int] = (0, 0), inverted: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """A square in a square, image ``[1, 48, 48]`` with noise and labels; inverted, its contrast is another."""
    labels = torch.zeros(48, 48, dtype=torch.long)
    labels[12:36, 12:36] = 1
    labels[18:30, 18:30] = 2
    labels = labels.roll(shift, (0, 1))
    grey = torch.tensor([0.0, 1.0, 0.4] if not inverted else [1.0, 0.2, 0.7])
    return (grey[labels] + 0.05 * torch.randn(48, 48))[None], labels


def test_patches_are_cut_about_their_centres(dim: int) -> None:
    image = torch.rand(2, 9, 8, 7)[(slice(None), slice(None), slice(None), *[0] * (3 - dim))]
    shape, radius = image.shape[1:], (1, 2, 1)[:dim]
    centre = (4, 3, 3)[:dim]
    flat = torch.arange(image[0].numel()).reshape(shape)[centre]
    corner = torch.zeros((), dtype=torch.long)
    patches = take_patches(image, torch.stack([corner, flat]), radius)
    window = tuple(slice(c - r, c + r + 1) for c, r in zip(centre, radius, strict=True))
    assert torch.equal(patches[1], image[(slice(None), *window)])
    assert torch.equal(patches[0][(slice(None), *[0] * dim)], image[(slice(None), *[0] * dim)])  # continued


def test_likeness_is_the_dice_of_the_patches() -> None:
    first, second = torch.zeros(9, 9, dtype=torch.long), torch.zeros(9, 9, dtype=torch.long)
    first[3:6, 3:6], second[3:6, 4:7] = 1, 1
    found = label_likeness(first, second, [1, 2], (2, 2))
    assert found[4, 4] == pytest.approx(2 * 6 / 18)
    assert found[0, 0] == 0.0  # neither shows anything
    assert label_likeness(first, first, [1], (2, 2))[4, 4] == 1.0


def test_episodes_have_one_like_patch_and_one_unlike() -> None:
    torch.manual_seed(0)
    target, labels = phantom()
    atlas = labels.float()[None]  # an image of the labels, so that patches tell theirs
    drawn = draw_episodes(target, labels, atlas, labels, [1, 2], (3, 3), 40, torch.Generator().manual_seed(0))
    queries = draw_episodes(atlas, labels, atlas, labels, [1, 2], (3, 3), 40, torch.Generator().manual_seed(0)).queries
    for query, (like, unlike) in zip(queries, drawn.supports, strict=True):
        centre = torch.tensor([3 * 7 + 3])
        dice = [
            label_likeness(query[0].long(), patch[0].long(), [1, 2], (3, 3)).flatten()[centre].item()
            for patch in (like, unlike)
        ]
        assert dice[0] > 0.9
        assert dice[1] < 0.5


def test_without_structures_there_are_no_episodes() -> None:
    empty = torch.zeros(20, 20, dtype=torch.long)
    image = torch.rand(1, 20, 20)
    assert draw_episodes(image, empty, image, empty, [1], (2, 2), 5, torch.Generator()) is None


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("patch", [(7, 7), (15, 15, 3), (3, 3, 3)], ids=str)
def test_similarity_takes_any_patch_and_every_weight_gets_a_gradient(patch: tuple[int, ...], shared: bool) -> None:
    network = SimilarityNetwork(patch, (2, 3, 4), shared=shared, norm=None)
    scores = network(torch.rand(4, 1, *patch), torch.rand(4, 5, 1, *patch))
    assert scores.shape == (4, 5)
    assert (scores <= 0).all()
    scores.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_learned_vote_finds_the_right_atlases_across_contrasts() -> None:
    """Trained on one pair, it outvotes a majority of atlases that are shifted by three voxels."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = SimilarityNetwork(PATCH, (4, 8, 8))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    target, labels = phantom(inverted=True)
    atlas, atlas_labels = phantom()
    losses = []
    standard = SimilarityNetwork.standardise
    for _ in range(60):
        episodes = draw_episodes(
            standard(target[None])[0], labels, standard(atlas[None])[0], atlas_labels, [1, 2], (3, 3), 32, generator
        )
        loss = SimilarityLoss()(network(*episodes), torch.zeros(len(episodes.queries), dtype=torch.long))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    good, bad = [phantom() for _ in range(2)], [phantom((3, -3)) for _ in range(3)]
    images, of_atlases = (torch.stack(found) for found in zip(*good, *bad, strict=True))
    new, truth = phantom(inverted=True)
    atlases = WarpedAtlases(of_atlases, images, new)
    majority = PluralityVote()(atlases).labels
    for vote in (LearnedVote(network), LearnedVote(network, most=2), LearnedVote(network, block=7)):
        assert (vote(atlases).labels != truth).sum() < 0.5 * (majority != truth).sum()
    assert network.training  # as it was


def test_a_learned_vote_needs_images() -> None:
    labels = torch.stack([phantom()[1], phantom((1, 1))[1]])
    with pytest.raises(InputError, match="needs the images"):
        LearnedVote(SimilarityNetwork(PATCH))(WarpedAtlases(labels))


def test_the_neighbourhood_undoes_a_shift_that_the_search_reaches() -> None:
    torch.manual_seed(0)
    target, truth = phantom()
    images, labels = (torch.stack(found) for found in zip(*[phantom((2, -1)) for _ in range(4)], strict=True))
    images = images + 0.02 * torch.randn_like(images)
    everywhere = torch.ones_like(truth, dtype=torch.bool)
    atlases = WarpedAtlases(labels, images, target)
    still, searched = (NonLocalVote(2, reach)(atlases, everywhere).labels for reach in (0, 2))
    assert (searched != truth).sum() < 0.1 * (still != truth).sum()


def test_weights_of_the_neighbourhood_are_those_of_the_formula() -> None:
    """Two atlases, no search: w = exp(-d²/(min d² + ε)), d² the sum of squared differences in the target's units."""
    torch.manual_seed(0)
    target = torch.rand(1, 9, 9)
    images = target + torch.rand(2, 1, 9, 9) * torch.tensor([0.2, 0.3]).reshape(2, 1, 1, 1)
    labels = torch.stack([torch.ones(9, 9), torch.zeros(9, 9)]).long()
    vote = NonLocalVote(1, 0).vote(WarpedAtlases(labels, images, target), torch.tensor([40]), torch.tensor([0, 1]))
    inner = (slice(None), slice(3, 6), slice(3, 6))
    mean, deviation = target.mean(), target.std()
    distances = torch.stack([((image[inner] - target[inner]) / deviation).square().sum() for image in images])
    epsilon = 1e-3 * ((target[inner] - mean) / deviation).square().sum()
    weights = torch.exp(-distances / (distances.min() + epsilon))
    torch.testing.assert_close(vote.weights[0], weights / weights.sum(), rtol=1e-4, atol=1e-5)
