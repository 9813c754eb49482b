# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Refinement of pairs: it registers, keeps what it was given, and pairs do not meet."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from atlas_istn.errors import InputError
from atlas_istn.inferers.pair import PairInferer
from atlas_istn.networks import PairISTN, PairTransformerNetwork
from atlas_istn.registration.transformations import Affine, Deformation, Transformation

SHAPES = {2: (32, 28), 3: (20, 18, 19)}
MODELS = {"shear": Affine("shear"), "velocity": Deformation("velocity"), "b_spline": Deformation("b_spline", 6)}


def network(transformation: Transformation, dim: int) -> PairISTN:
    torch.manual_seed(0)
    stn = PairTransformerNetwork(dim, 2, transformation, (8, 16), 4, 16)
    return PairISTN(None, stn, transformation, [1.0] * dim)


@pytest.mark.parametrize("mode", ["parameters", "weights"])
@pytest.mark.parametrize("name", list(MODELS))
def test_refinement_registers_what_the_network_does_not(
    name: str, mode: str, dim: int, ring: Callable[..., torch.Tensor]
) -> None:
    net = network(MODELS[name], dim)
    before = copy.deepcopy(net.state_dict())
    moving, fixed = ring(SHAPES[dim])[:, 1:], ring(SHAPES[dim], shift=1.5)[:, 1:]
    result = PairInferer(mode, iterations=40, learning_rate=5e-3).infer(torch.cat([moving, fixed], dim=1), net)
    start = (moving - fixed).square().mean()
    torch.testing.assert_close(result.fit.curve[0, 0], start, rtol=1e-2, atol=0)  # the network begins at the identity
    assert (result.transform.to_fixed(moving) - fixed).square().mean() < 0.5 * start
    assert result.fit.loss <= result.fit.curve[0]
    assert result.one_pass is not None
    assert result.one_pass.moving_to_fixed().abs().max() < 0.02
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["parameters", "weights"])
def test_pairs_of_a_batch_do_not_meet(mode: str, ring: Callable[..., torch.Tensor]) -> None:
    net = network(MODELS["velocity"], 2)
    moving = ring(SHAPES[2])[:, 1:]
    pairs = torch.cat([torch.cat([moving, ring(SHAPES[2], shift)[:, 1:]], dim=1) for shift in (1.0, -2.0)])
    inferer = PairInferer(mode, iterations=10, tolerance=0.0)
    together = inferer.infer(pairs, net)
    assert (together.fit.iterations == 10).all()  # without a tolerance none settles before
    for index in range(2):
        alone = inferer.infer(pairs[index : index + 1], net)
        torch.testing.assert_close(
            alone.transform.moving_to_fixed(), together.case(index).transform.moving_to_fixed(), rtol=0, atol=1e-2
        )


def test_no_iterations_are_the_one_pass(ring: Callable[..., torch.Tensor]) -> None:
    net = network(MODELS["shear"], 2)
    pair = torch.cat([ring(SHAPES[2])[:, 1:], ring(SHAPES[2], 2.0)[:, 1:]], dim=1)
    result = PairInferer(iterations=0).infer(pair, net)
    assert result.one_pass is not None
    torch.testing.assert_close(result.transform.affine, result.one_pass.affine)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(InputError, match="parameters or weights"):
        PairInferer("field")


def test_structures_of_the_user_move_what_images_do_not_show(ring: Callable[..., torch.Tensor]) -> None:
    net = network(MODELS["shear"], 2)
    blank = torch.rand(1, 1, *SHAPES[2]).expand(1, 2, -1, -1)  # nothing has moved
    moving, fixed = ring(SHAPES[2])[:, 1:], ring(SHAPES[2], shift=2.0)[:, 1:]
    structures = torch.cat([moving, fixed], dim=1)
    results = [PairInferer(iterations=60, structures=weight).infer(blank, net, structures) for weight in (0.0, 50.0)]
    left, moved = ((result.transform.to_fixed(moving) - fixed).square().mean() for result in results)
    assert moved < 0.2 * left


def test_smoothing_finds_what_lies_apart(dim: int) -> None:
    shape = SHAPES[dim]
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")).float()
    balls = [torch.exp(-((places - centre) ** 2).sum(dim=0) / 4)[None, None] for centre in (7.0, 11.0)]
    net = network(Affine("rigid", rate=0.02), dim)
    errors = []
    for smoothing in ((), (4.0, 2.0)):
        result = PairInferer(iterations=90, smoothing=smoothing, tolerance=0.0).infer(torch.cat(balls, dim=1), net)
        errors.append(float((result.transform.to_fixed(balls[0]) - balls[1]).square().mean()))
    start = float((balls[0] - balls[1]).square().mean())
    assert errors[1] < 0.1 * start
    assert errors[0] > 0.5 * start  # they do not touch, and no gradient says where to go
