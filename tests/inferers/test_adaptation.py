# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""An ITN that fails as a whole learns of the atlas what the image shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn

from atlas_istn.errors import InputError
from atlas_istn.inferers.adaptation import Adaptation
from atlas_istn.inferers.refine import RefinementInferer
from atlas_istn.inferers.target import disagreement
from atlas_istn.networks import AtlasISTN

Build = Callable[..., AtlasISTN]
SHAPES = {2: (24, 24), 3: (16, 16, 16)}
STRONG = Adaptation(steps=20, rate=0.2, disagreement=0.3, confidence=1.0)


def threshold_itn(dim: int, bias: float) -> nn.Module:
    """Labels what is brighter than the image's mean, or with a bias less of it: what a foreign contrast does."""
    norm, conv = (nn.InstanceNorm2d, nn.Conv2d) if dim == 2 else (nn.InstanceNorm3d, nn.Conv3d)
    itn = nn.Sequential(norm(1, affine=True), conv(1, 2, 1, bias=False))
    with torch.no_grad():
        itn[0].bias.fill_(bias)
        itn[1].weight.copy_(torch.tensor([-2.0, 2.0]).reshape(2, 1, *[1] * dim))
    return itn


@pytest.fixture
def failing(dim: int, tiny_network: Build) -> AtlasISTN:
    return tiny_network(SHAPES[dim], itn=threshold_itn(dim, -5.0), activation=nn.Softmax(dim=1)).eval()


def inferer(adaptation: Adaptation | None) -> RefinementInferer:
    return RefinementInferer(iterations=0, adaptation=adaptation)


def test_an_itn_that_misses_everything_finds_the_anatomy(failing: AtlasISTN) -> None:
    image, truth = failing.atlas_image.clone(), failing.atlas_labels
    plain, adapted = (inferer(adaptation).infer(image, failing) for adaptation in (None, STRONG))
    assert float(disagreement(plain.prediction, truth)) > 0.9
    assert float(disagreement(adapted.prediction, truth)) < 0.1  # a thin ring: some voxels of its soft edge
    assert plain.adapted == ()
    assert adapted.adapted == (True,)


def test_an_itn_that_agrees_is_left_alone(dim: int, tiny_network: Build) -> None:
    network = tiny_network(SHAPES[dim], itn=threshold_itn(dim, 0.0), activation=nn.Softmax(dim=1)).eval()
    plain, adapted = (inferer(adaptation).infer(network.atlas_image, network) for adaptation in (None, STRONG))
    assert torch.equal(plain.prediction, adapted.prediction)
    assert adapted.adapted == (False,)


def test_an_itn_that_is_sure_is_left_alone(failing: AtlasISTN) -> None:
    with torch.no_grad():
        failing.itn[0].bias.fill_(5.0)  # all foreground, and sure of it
    result = inferer(dataclasses.replace(STRONG, confidence=0.9)).infer(failing.atlas_image, failing)
    assert float(disagreement(result.prediction, failing.atlas_labels)) > 0.3
    assert result.adapted == (False,)


def test_each_case_is_adapted_by_itself_and_the_network_stays(failing: AtlasISTN) -> None:
    before = {name: value.clone() for name, value in failing.state_dict().items()}
    images = torch.cat([failing.atlas_image, 0.5 * failing.atlas_image.roll(2, dims=-1), failing.atlas_image])
    together = inferer(STRONG).infer(images, failing)
    alone = [inferer(STRONG).infer(image[None], failing) for image in images]
    torch.testing.assert_close(together.prediction, torch.cat([result.prediction for result in alone]))
    assert torch.equal(together.prediction[0], together.prediction[2])
    assert all(torch.equal(value, before[name]) for name, value in failing.state_dict().items())
    assert all(parameter.requires_grad for parameter in failing.parameters())


def test_cases_of_a_batch_know_whether_they_were_adapted(failing: AtlasISTN) -> None:
    result = inferer(STRONG).infer(failing.atlas_image.repeat(2, *[1] * (failing.atlas_image.ndim - 1)), failing)
    assert result.case(1).adapted == (True,)


def test_an_itn_without_weights_of_normalisation_is_refused(tiny_network: Build) -> None:
    network = tiny_network((16, 16), itn=nn.Conv2d(1, 2, 1))
    with pytest.raises(InputError, match=r"refine_adaptation: the ITN has no normalisation.*Set its steps to 0"):
        inferer(Adaptation(1, 0.1, 0.0, 1.0)).infer(network.atlas_image, network)


@pytest.mark.parametrize("values", [(-1, 0.1, 0.1, 1.0), (1, 0.0, 0.1, 1.0), (1, 0.1, 1.1, 1.0), (1, 0.1, 0.1, 2.0)])
def test_values_out_of_range_are_refused(values: tuple[int, float, float, float]) -> None:
    with pytest.raises(InputError, match="refine_adaptation: expected steps from 0"):
        Adaptation(*values)
