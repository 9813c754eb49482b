# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

import pytest
import torch

from atlas_istn.fusion.atlases import WarpedAtlases
from atlas_istn.fusion.staple import Staple
from atlas_istn.fusion.vote import PluralityVote


def raters(quality: list[float], shape: tuple[int, ...] = (40, 40)) -> tuple[torch.Tensor, torch.Tensor]:
    """A truth of three labels, and raters each of whom is right with a probability of his own."""
    truth = torch.randint(0, 3, shape)
    right = torch.rand(len(quality), *shape) < torch.tensor(quality).reshape(-1, *[1] * len(shape))
    return truth, torch.where(right, truth, torch.randint(0, 3, (len(quality), *shape)))


def test_staple_trusts_reliable_raters_against_a_majority() -> None:
    truth, labels = raters([0.95, 0.93, 0.1, 0.1, 0.1])
    given = WarpedAtlases(labels)
    wrong = (Staple()(given).labels != truth).float().mean()
    assert wrong < 0.12 < (PluralityVote()(given).labels != truth).float().mean()


def test_staple_agrees_with_that_of_itk() -> None:
    sitk = pytest.importorskip("SimpleITK")
    _, labels = raters([0.9, 0.8, 0.7, 0.6])
    voxels = torch.arange(labels[0].numel())
    votes = Staple(200, 1e-7).vote(WarpedAtlases(labels), voxels, torch.arange(3))
    images = [sitk.GetImageFromArray(label.numpy().astype("uint8")) for label in labels]
    staple = sitk.MultiLabelSTAPLEImageFilter()
    staple.SetTerminationUpdateThreshold(1e-7)
    theirs = torch.from_numpy(sitk.GetArrayFromImage(staple.Execute(images))).flatten()
    clear = theirs < 3  # ITK leaves ties undecided
    assert clear.float().mean() > 0.98
    assert (votes.posterior.argmax(dim=1)[clear] == theirs[clear]).float().mean() > 0.995
