# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The labels of soft labelmaps are those of an argmax."""

from __future__ import annotations

import torch
from monai.data import MetaTensor

from atlas_istn.spatial import label_indices, one_hot_labels


def test_labels_are_the_argmax_and_the_first_of_equals(dim: int) -> None:
    soft = torch.randint(0, 3, (2, 4, *[9] * dim), generator=torch.Generator().manual_seed(0)).float()  # many ties
    expected = soft.argmax(dim=1)
    assert torch.equal(label_indices(soft), expected)
    assert torch.equal(label_indices(soft[0], dim=0, keepdim=True), expected[0][None])
    hot = one_hot_labels(soft.double())
    assert hot.dtype == torch.float64
    assert torch.equal(hot.argmax(dim=1), expected)
    assert torch.equal(hot.sum(dim=1), torch.ones_like(hot[:, 0]))


def test_labels_keep_the_metadata() -> None:
    labels = label_indices(MetaTensor(torch.rand(3, 4, 4), meta={"name": "x"}), dim=0, keepdim=True)
    assert isinstance(labels, MetaTensor)
    assert labels.meta["name"] == "x"
