# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from atlas_istn.networks import AtlasISTN, JointForward
from atlas_istn.training.losses import AtlasISTNLoss

Build = Callable[..., AtlasISTN]
Field = Callable[..., torch.Tensor]


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
