# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.nets import DynUNet
from torch import Tensor, nn

from atlas_istn.networks.layout import to_channels_last

LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}


def random_network(dim: int) -> nn.Module:
    """A network with instance normalisations whose weights are no ones and zeros."""
    network = DynUNet(
        dim, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 8], norm_name=("instance", {"affine": True})
    )
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return network


def gradients(network: nn.Module, image: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Of the mean square of what a network yields, which comes with them."""
    found = network(image)
    return found, list(torch.autograd.grad((found**2).mean(), list(network.parameters())))


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("training", [False, True])
def test_a_network_yields_the_same_with_the_same_weights(dim: int, training: bool) -> None:
    """PyTorch's own instance normalisation is the reference, in double precision, where rounding does not blur it."""
    before = random_network(dim).double().train(training)
    after = copy.deepcopy(before)
    to_channels_last(after, dim)
    assert list(after.state_dict()) == list(before.state_dict())
    image = torch.randn(3, 1, *[16, 24, 12][:dim], dtype=torch.float64)
    expected, expected_gradients = gradients(before, image)
    found, found_gradients = gradients(after, image)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_gradients, expected_gradients)


@pytest.mark.parametrize("dim", [2, 3])
def test_features_stay_with_channels_last(dim: int) -> None:
    """Each normalisation gets channels last, and passes them on so."""
    network = random_network(dim)
    to_channels_last(network, dim)
    layouts = []
    for module in network.modules():
        if isinstance(module, (nn.InstanceNorm2d, nn.InstanceNorm3d)):
            module.register_forward_hook(
                lambda _, inputs, output: layouts.extend(
                    part.is_contiguous(memory_format=LAYOUTS[dim]) for part in (*inputs, output)
                )
            )
    network(torch.randn(2, 1, *[16, 24, 12][:dim]))
    assert layouts
    assert all(layouts)


def test_a_weight_stays_the_parameter_that_an_optimiser_holds() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True))
    weight = network[1].weight
    to_channels_last(network, 2)
    assert network[1].weight is weight


def test_without_weights_and_with_running_statistics() -> None:
    """The first has nothing to share; the second normalises by what it has seen, which is another thing."""
    network = nn.Sequential(nn.InstanceNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True)).eval()
    image = torch.randn(2, 3, 8, 8)
    expected = network(image)
    to_channels_last(network, 2)
    torch.testing.assert_close(network(image), expected)
    assert type(network[1]) is nn.InstanceNorm2d


def test_a_network_can_be_scripted() -> None:
    """As some hosts do it."""
    network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.InstanceNorm3d(4, affine=True))
    to_channels_last(network, 3)
    image = torch.randn(2, 1, 8, 8, 8)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))
