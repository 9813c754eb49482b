# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The four objectives of the ISTN paper, against their equations written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from atlas_istn.errors import InputError
from atlas_istn.networks import AdditiveNet, PairISTN, PairTransformerNetwork
from atlas_istn.registration.regularisers import mean_squared_gradient
from atlas_istn.registration.similarity import MultiscaleDice, correlation
from atlas_istn.registration.transformations import Affine, Deformation
from atlas_istn.spatial import warp
from atlas_istn.training.pair_loss import PairLoss

OBJECTIVES = {
    "stn_u": {"images": 1.0},
    "stn_s": {"structures": 1.0},
    "istn_e": {"structures": 1.0, "explicit": 1.0},
    "istn_i": {"structures": 1.0, "implicit": 1.0},
}


def example(kind: str = "shear") -> tuple[PairISTN, dict[str, Any], torch.Tensor]:
    torch.manual_seed(0)
    transformation = Deformation("b_spline", 6) if kind == "b_spline" else Affine(kind)
    net = PairISTN(
        AdditiveNet(2), PairTransformerNetwork(2, 2, transformation, (4, 8), 2, 8), transformation, [1.0, 1.0]
    )
    parts = net.parts(torch.rand(3, 2, 20, 24))
    parts["state"] = tuple(tensor + 0.1 for tensor in parts["state"])
    return net, parts, torch.rand(3, 2, 20, 24)


def mse(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first - second).square().mean()


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_objectives_are_those_of_the_paper(name: str) -> None:
    net, parts, structures = example()
    moving, fixed = parts["moving"], parts["fixed"]
    soi_moving, soi_fixed = structures[:, :1], structures[:, 1:]
    warp = net.transform(parts["state"], moving).to_fixed
    supervised = mse(warp(soi_moving), soi_fixed)
    expected = {
        "stn_u": mse(warp(moving), fixed),
        "stn_s": supervised,
        "istn_e": mse(moving, soi_moving) + mse(fixed, soi_fixed) + supervised,
        "istn_i": mse(warp(moving), soi_fixed) + mse(warp(soi_moving), fixed) + supervised,
    }[name]
    torch.testing.assert_close(PairLoss(net, OBJECTIVES[name])(parts, structures), expected)


def test_a_regulariser_is_an_option() -> None:
    net, parts, structures = example("b_spline")
    without = PairLoss(net, OBJECTIVES["stn_s"])(parts, structures)
    parts["state"] = (torch.randn_like(parts["state"][0]),)
    loss = PairLoss(net, {**OBJECTIVES["stn_s"], "lambda": 0.5})
    weighted = loss(parts, structures)
    assert weighted > without
    torch.testing.assert_close(weighted, loss.terms["structures"] + 0.5 * loss.terms["lambda"])


def test_two_way_consistent_objective_is_that_of_the_paper() -> None:
    """X-MAS, eq. (3) to (5), with the squared error in place of the Dice."""
    torch.manual_seed(1)
    transformation = Deformation("displacements")
    net = PairISTN(None, PairTransformerNetwork(2, 2, transformation, (4, 8)), transformation, [1.0, 1.0])
    parts = net.parts(torch.rand(3, 2, 20, 24))
    parts["state"] = (0.3 * torch.randn_like(parts["state"][0]),)
    moving, fixed = torch.rand(3, 2, 20, 24).chunk(2, dim=1)
    u, v = (
        net.transform(parts["state"], moving).moving_to_fixed(),
        net.transform(parts["state"], moving).fixed_to_moving(),
    )
    assert not torch.allclose(u, v)  # each for itself
    two_way = mse(warp(moving, u), fixed) + mse(warp(fixed, v), moving)
    consistency = mse(warp(warp(moving, u), v), moving) + mse(warp(warp(fixed, v), u), fixed)
    weights = {"structures": 1.0, "backward": 1.0, "invertible": 0.2, "lambda": 0.6}
    loss = PairLoss(net, weights)
    found = loss(parts, torch.cat([moving, fixed], dim=1))
    smoothness = sum(mean_squared_gradient(field, [1.0, 1.0]).mean() for field in parts["state"][0].chunk(2, dim=1))
    torch.testing.assert_close(found, two_way + 0.2 * consistency + 0.3 * smoothness)


def test_structures_may_be_compared_by_another_error_than_images() -> None:
    """DIS of MAS-refine: correlation of the images, Dice of the structures."""
    net, parts, structures = example("b_spline")
    dice = MultiscaleDice([0], [1.0, 1.0])
    weights = {"images": 1.0, "structures": 3.0}
    found = PairLoss(net, weights, correlation, structure_similarity=dice)(parts, structures)
    transform = net.transform(parts["state"], parts["moving"])
    moving, fixed = structures.chunk(2, dim=1)
    expected = correlation(transform.to_fixed(parts["moving"]), parts["fixed"])
    torch.testing.assert_close(found, (expected + 3.0 * dice(transform.to_fixed(moving), fixed)).mean())


def test_what_makes_no_sense_is_refused() -> None:
    net, parts, structures = example()
    with pytest.raises(InputError, match="found explizit"):
        PairLoss(net, {"explizit": 1.0})
    with pytest.raises(InputError, match="no weight above 0"):
        PairLoss(net, {"lambda": 1.0})
    with pytest.raises(InputError, match="needs structures of interest"):
        PairLoss(net, OBJECTIVES["istn_e"])(parts, None)
    with pytest.raises(InputError, match="1 channels, the structures of interest have 2"):
        PairLoss(net, OBJECTIVES["istn_i"])(parts, torch.cat([structures, structures], dim=1))
