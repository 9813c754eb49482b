# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from monai.networks.nets import DynUNet

from atlas_istn.errors import InputError
from atlas_istn.networks import AtlasISTN, JointForward
from atlas_istn.training.losses import AtlasISTNLoss, dice_cross_entropy

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


def test_the_atlas_is_stiff_at_first(tiny_network: Build, ring: Field) -> None:
    loss = AtlasISTNLoss(
        tiny_network((24, 24)), regularisation=0.02, stiff_regularisation=0.5, stiff_epochs=4, segmentation_weight=0.0
    )
    strengths = []
    for loss.epoch in range(6):
        strengths.append(loss.schedules["lambda"])
    # The same factor each epoch, the fourth root of 0.02 / 0.5, and its own from the fifth on.
    torch.testing.assert_close(strengths, [0.5, 0.5 * 0.04**0.25, 0.1, 0.5 * 0.04**0.75, 0.02, 0.02])
    output = JointForward(loss.network)(torch.rand(1, 1, 24, 24))
    output["velocity"] = torch.rand_like(output["velocity"])
    values = {}
    for loss.epoch in (0, 5):
        values[loss.epoch] = loss(output, ring((24, 24)))
    torch.testing.assert_close(values[0] - values[5], 0.48 * loss.terms["regularisation"])


def deep(dim: int) -> DynUNet:
    return DynUNet(dim, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 4, 4), deep_supervision=True, deep_supr_num=1)


def test_a_network_with_deep_supervision_learns_from_all_its_heads(tiny_network: Build, ring: Field, dim: int) -> None:
    shape = (16,) * dim
    network = tiny_network(shape, itn=deep(dim), activation=torch.nn.Softmax(dim=1))
    image, labels = torch.rand(2, 1, *shape), ring(shape).expand(2, -1, *[-1] * dim)
    output = JointForward(network)(image)
    assert output["predictions"].shape == (2, 2, 2, *shape)
    torch.testing.assert_close(output["predictions"].sum(dim=2), torch.ones(2, 2, *shape))
    assert torch.equal(output["predictions"][:, 0], output["prediction"])
    loss = AtlasISTNLoss(network, dice_cross_entropy, supervision=(2.0, 1.0))
    loss(output, labels).backward()
    errors = [dice_cross_entropy(found, labels).mean() for found in output["predictions"].unbind(1)]
    torch.testing.assert_close(loss.terms["segmentation"], ((2 * errors[0] + errors[1]) / 3).detach())
    assert all(p.grad is not None for name, p in network.named_parameters() if "deep_supervision_heads" in name)
    network.eval()
    assert set(JointForward(network)(image)) == {"prediction", "velocity", "parameters"}
    with pytest.raises(InputError, match="2 predictions in training"):
        AtlasISTNLoss(network)(output, labels)
