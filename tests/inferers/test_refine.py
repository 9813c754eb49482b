# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

"""What holds for every refinement, whatever its recipe; through the public interface alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from atlas_istn.errors import InputError
from atlas_istn.inferers.refine import RefinementInferer
from atlas_istn.inferers.target import disagreement
from atlas_istn.networks import AtlasISTN
from atlas_istn.spatial import jacobian_determinant

SHAPES = {2: (32, 28), 3: (16, 20, 18)}
Build = Callable[..., AtlasISTN]
Ring = Callable[..., torch.Tensor]

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


class Threshold(nn.Module):
    """An ITN that needs no training: the image is the foreground's probability."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([1 - image, image], dim=1)


@pytest.fixture(params=["field", "weights"])
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def network(tiny_network: Build, dim: int) -> AtlasISTN:
    """Its 1-pass is the atlas as it is; its ITN is right."""
    return tiny_network(SHAPES[dim], itn=Threshold()).eval()


@pytest.fixture
def images(ring: Ring, dim: int) -> torch.Tensor:
    """Three rings off the atlas's place or size: [3, 1, *shape]."""
    misfits = [(2.0, 0.3), (-1.5, 0.36), (1.0, 0.27)]
    return torch.cat([ring(SHAPES[dim], shift, radius)[:, 1:] for shift, radius in misfits])


def dice(segmentation: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Overlap of each case [B] with the image, which is its own truth."""
    found, truth = segmentation.argmax(dim=1).flatten(1) == 1, image.flatten(1) > 0.5
    return 2 * (found & truth).sum(dim=1) / (found.sum(dim=1) + truth.sum(dim=1))


def test_fits_the_atlas_to_the_prediction(mode: str, network: AtlasISTN, images: torch.Tensor) -> None:
    result = RefinementInferer(mode=mode, iterations=40).infer(images, network)
    assert (dice(result.segmentation, images) > dice(result.one_pass, images)).all()
    assert (jacobian_determinant(result.transform.moving_to_fixed()) > 0).all()


def test_is_never_worse_than_the_one_pass(mode: str, network: AtlasISTN, images: torch.Tensor) -> None:
    """Even with steps so large that the optimisation runs away: the best iterate is kept, the 1-pass among them."""
    for learning_rate in (None, 5.0):
        result = RefinementInferer(mode=mode, iterations=8, learning_rate=learning_rate).infer(images, network)
        assert (result.course.curve.min(dim=0).values <= result.course.curve[0]).all()
        error_before = (result.one_pass - result.prediction).square().mean(dim=tuple(range(1, images.ndim)))
        error_after = (result.segmentation - result.prediction).square().mean(dim=tuple(range(1, images.ndim)))
        # The misfit alone, which the kept iterate may not raise: the 1-pass here has no deformation to be relieved of.
        assert (error_after <= error_before + 1e-7).all()


def test_results_belong_together(mode: str, network: AtlasISTN, images: torch.Tensor) -> None:
    result = RefinementInferer(mode=mode, iterations=4).infer(images, network)
    torch.testing.assert_close(result.segmentation, result.transform.to_fixed(network.atlas_labels))
    torch.testing.assert_close(result.one_pass, network(images))
    torch.testing.assert_close(result.prediction, network.segment(images))
    assert len(result.transform) == len(result.course.iterations) == result.course.curve.shape[1] == len(images)


def test_no_iterations_give_the_one_pass(mode: str, network: AtlasISTN, images: torch.Tensor) -> None:
    result = RefinementInferer(mode=mode, iterations=0).infer(images, network)
    torch.testing.assert_close(result.segmentation, network(images))
    torch.testing.assert_close(result.one_pass, network(images))


def test_the_network_is_untouched(mode: str, network: AtlasISTN, images: torch.Tensor) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    flags = [parameter.requires_grad for parameter in network.parameters()]
    RefinementInferer(mode=mode, iterations=3).infer(images, network)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network.training


def test_repeats(mode: str, network: AtlasISTN, images: torch.Tensor) -> None:
    inferer = RefinementInferer(mode=mode, iterations=4)
    first = inferer(images, network)
    torch.rand(7)  # no random number takes part
    assert torch.equal(inferer(images, network), first)


def test_neither_order_nor_company_matters(mode: str, network: AtlasISTN, images: torch.Tensor) -> None:
    inferer = RefinementInferer(mode=mode, iterations=10)
    together = inferer(images, network)
    # Kernels of other batch sizes may sum in another order, which Adam's division by a small root amplifies: 1e-7
    # becomes up to 1e-4 of a probability in ten steps. Cases that mixed would differ by a hundred times that.
    torch.testing.assert_close(inferer(images.flip(0), network).flip(0), together, rtol=0, atol=1e-3)
    alone = torch.cat([inferer(image.unsqueeze(0), network) for image in images])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-3)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_works_in_every_gradient_mode_and_by_keyword(
    context: Callable[[], Any], mode: str, network: AtlasISTN, images: torch.Tensor
) -> None:
    """Hosts call the inferer by keyword, under no_grad or inference_mode."""
    inferer = RefinementInferer(mode=mode, iterations=3)
    expected = inferer(images, network)
    with context():
        segmentation = inferer(inputs=images * 1, network=network)
    assert not segmentation.requires_grad
    assert torch.equal(segmentation, expected)


def test_a_closed_gate_keeps_the_affine_out(mode: str, network: AtlasISTN, images: torch.Tensor, dim: int) -> None:
    network.affine_gate.fill_(0)
    result = RefinementInferer(mode=mode, iterations=3).infer(images, network)
    torch.testing.assert_close(result.transform.affine, torch.eye(dim, dim + 1).expand(len(images), -1, -1))


def test_an_stn_that_looks_twice_is_refined(mode: str, network: AtlasISTN, images: torch.Tensor) -> None:
    network.stn_passes = 2
    before = copy.deepcopy(network.state_dict())
    result = RefinementInferer(mode=mode, iterations=10, regularisation=0.0).infer(images, network)
    assert (result.course.curve[-1] < result.course.curve[0]).all()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="mode"):
        RefinementInferer(mode="both")


def test_follows_the_labels_of_an_itn_that_wavers(mode: str, network: AtlasISTN, images: torch.Tensor) -> None:
    """With 0.52 against 0.48 the labels are as before, but the probabilities hardly move the atlas."""
    wavering = 0.5 + 0.04 * (images - 0.5)
    soft = RefinementInferer(mode=mode, iterations=30).infer(wavering, network)
    sharp = RefinementInferer(mode=mode, iterations=30, confidence=0.9).infer(wavering, network)
    assert (dice(sharp.segmentation, images) > dice(soft.segmentation, images) + 0.05).all()
    torch.testing.assert_close(soft.course.target, soft.prediction)
    assert torch.equal(sharp.course.target.argmax(dim=1), sharp.prediction.argmax(dim=1))
    for target in sharp.course.target:
        largest, labels = target.max(dim=0)
        torch.testing.assert_close(largest[labels > 0].mean(), torch.tensor(0.9))


def test_leaves_a_confident_prediction_as_it_is(network: AtlasISTN, images: torch.Tensor) -> None:
    result = RefinementInferer(iterations=1, confidence=0.6).infer(images, network)
    torch.testing.assert_close(result.course.target, result.prediction)


def half_erased(images: torch.Tensor) -> torch.Tensor:
    """The images without the half of the grid beyond the middle of the last axis."""
    damaged = images.clone()
    damaged[..., images.shape[-1] // 2 :] = 0
    return damaged


def test_disagreement_is_one_minus_dice() -> None:
    """Labels on 4 and on 2 of the same 4 voxels overlap by Dice 2/3; empty labels agree, disjoint ones do not."""
    labels = torch.zeros(4, 3, 8)
    for case, (first, second) in enumerate([((0, 4), (4, 8)), ((0, 2), (4, 8)), ((4, 8), (0, 4)), ((0, 0), (0, 0))]):
        labels[case, 1, slice(*first)] = labels[case, 2, slice(*second)] = 1
    labels[:, 0] = 0.5
    found = disagreement(labels[:1].expand(4, -1, -1), labels)
    torch.testing.assert_close(found, torch.tensor([0.0, (1 / 3 + 0) / 2, 1.0, 1.0]))
    torch.testing.assert_close(disagreement(labels[3:], labels[3:]), torch.zeros(1))


def test_a_damaged_prediction_is_not_believed(mode: str, network: AtlasISTN, ring: Ring, dim: int) -> None:
    """Half a ring is no ring, whatever its pose: the 1-pass, a ring in the right place, counts. A shifted ring is."""
    whole, shifted = ring(SHAPES[dim], 0.0, 0.33)[:, 1:], ring(SHAPES[dim], 2.0, 0.33)[:, 1:]
    images = torch.cat([half_erased(whole), shifted])
    believing = RefinementInferer(mode=mode, iterations=40).infer(images, network)
    doubting = RefinementInferer(mode=mode, iterations=40, trust=(0.1, 0.2)).infer(images, network)
    assert believing.course.trust.tolist() == [1.0, 1.0]
    assert doubting.course.trust[0] < 0.2
    assert doubting.course.trust[1] == 1.0
    assert dice(doubting.segmentation[:1], whole) > dice(believing.segmentation[:1], whole) + 0.05
    torch.testing.assert_close(doubting.segmentation[1], believing.segmentation[1], rtol=0, atol=1e-3)
    torch.testing.assert_close(doubting.course.target[1], doubting.prediction[1])


def test_where_nothing_is_believed_the_target_is_the_one_pass(network: AtlasISTN, images: torch.Tensor) -> None:
    result = RefinementInferer(iterations=10, trust=(0.0, 1e-6)).infer(half_erased(images), network)
    assert result.course.trust.tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(result.course.target, result.one_pass)


@pytest.mark.parametrize("trust", [(0.2, 0.1), (0.1,), (-0.1, 0.2)])
def test_refuses_limits_of_the_trust_that_do_not_rise(trust: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="refine_trust"):
        RefinementInferer(trust=trust)


def test_refuses_a_confidence_that_is_no_probability() -> None:
    with pytest.raises(InputError, match="refine_confidence"):
        RefinementInferer(confidence=1.5)
