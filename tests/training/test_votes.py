# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from atlas_istn.errors import InputError
from atlas_istn.fusion.atlases import WarpedAtlases
from atlas_istn.fusion.joint import VoteNetPlus
from atlas_istn.fusion.trust import PredictedTrust
from atlas_istn.fusion.vote import PluralityVote, TrustedVote
from atlas_istn.networks import VoteNet
from atlas_istn.training.votes import VoteLoss, mark_votes, platt_scaling
from atlas_istn.training.warped_pairs import WarpedPair


def square(shift: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.zeros(32, 32, dtype=torch.uint8)
    labels[10 + shift : 22 + shift, 10:22] = 1
    return labels[None].float() + 0.05 * torch.randn(1, 32, 32), labels


def test_votes_count_about_the_labels_and_say_where_the_atlas_is_right() -> None:
    (target, truth), (atlas, labels) = square(), square(3)
    example = mark_votes(WarpedPair("a__b", target, truth, atlas, labels))
    marks = example["label"][0]
    assert torch.equal(example["image"], torch.cat([target, atlas]))
    assert marks[11, 15] == 0  # of the target alone
    assert marks[15, 15] == 1  # of both
    assert marks[8, 15] == 1  # two voxels from both, both background
    assert marks[7, 15] == -1
    assert ((marks == 0) == (truth != labels)).all()


def test_what_does_not_count_has_no_gradient() -> None:
    logits = torch.zeros(1, 1, 4, requires_grad=True)
    VoteLoss()(logits, torch.tensor([[[1.0, 0.0, -1.0, -1.0]]])).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[[-0.25, 0.25, 0.0, 0.0]]]))


def test_platt_scaling_is_the_most_likely() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, generator=generator)
    labels = (torch.rand(500, generator=generator) < (0.4 * logits - 0.7).sigmoid()).float()
    z, y = logits.double().numpy(), labels.numpy()

    def cost(found: np.ndarray) -> float:
        margin = (2 * y - 1) * (found[0] * z + found[1])
        return float(np.logaddexp(0, -margin).sum())

    expected = minimize(cost, [1.0, 0.0], method="BFGS", options={"gtol": 1e-8}).x
    np.testing.assert_allclose(platt_scaling(logits, labels), expected, atol=1e-4)
    assert platt_scaling(logits, torch.ones(500)) == (1.0, 0.0)


def test_a_trained_vote_net_trusts_the_atlases_that_fit() -> None:
    """Three of five atlases are shifted: a majority is wrong there, and those that are trusted are not."""
    torch.manual_seed(0)
    network = VoteNet(2, 1, (8, 8))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(80):
        examples = [mark_votes(WarpedPair("a__b", *square(), *square(shift))) for shift in (0, 3, -3, 0)]
        pairs, marks = (torch.stack([example[key] for example in examples]) for key in ("image", "label"))
        loss = VoteLoss()(network(pairs), marks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    truth = square()[1]
    images, labels = zip(*[square(shift) for shift in (0, 0, 3, 3, 3)], strict=True)
    atlases = WarpedAtlases(torch.stack(labels), torch.stack(images), square()[0])
    majority = (PluralityVote()(atlases).labels != truth).sum()
    for fusion in (TrustedVote(), VoteNetPlus(1)):
        assert (PredictedTrust(network, fusion)(atlases).labels != truth).sum() < 0.2 * majority
    with pytest.raises(InputError, match="needs images"):
        PredictedTrust(network, TrustedVote())(WarpedAtlases(torch.stack(labels)))
