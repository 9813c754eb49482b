# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The pairwise ISTN with every transformation model: its start, its sizes, and what its parts share."""

from __future__ import annotations

import pytest
import torch

from atlas_istn.errors import InputError
from atlas_istn.networks import AdditiveNet, PairISTN, PairTransformerNetwork, UNet
from atlas_istn.registration.transformations import Affine, Deformation, Transformation

SHAPES = {2: (40, 33), 3: (24, 17, 20)}
TRANSFORMATIONS = {
    "rigid": Affine("rigid"),
    "affine": Affine("affine"),
    "shear": Affine("shear", max_translation=3.0, max_log_scale=0.2),
    "b_spline": Deformation("b_spline", distance=8, max_displacement=4.0),
    "velocity": Deformation("velocity"),
    "displacements": Deformation("displacements", affine=Affine("affine"), max_displacement=6.0),
    "affine_b_spline": Deformation("b_spline", distance=8, affine=Affine("shear")),
    "affine_velocity": Deformation("velocity", affine=Affine("affine")),
}


def network(
    transformation: Transformation, dim: int, itn: torch.nn.Module | None, channels: int = 1, coarse: bool = False
) -> PairISTN:
    torch.manual_seed(0)
    stn = PairTransformerNetwork(
        dim, 2 * channels, transformation, channels=(4, 8), cells=2, hidden=8, coarse_heads=coarse
    )
    return PairISTN(itn, stn, transformation, (1.0, 2.0, 1.5)[:dim])


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("name", list(TRANSFORMATIONS))
def test_the_first_prediction_is_the_identity_for_images_of_any_size(name: str, coarse: bool, dim: int) -> None:
    net = network(TRANSFORMATIONS[name], dim, AdditiveNet(dim), coarse=coarse)
    for shape in (SHAPES[dim], tuple(n + 3 for n in SHAPES[dim])):
        pair = torch.rand(2, 2, *shape)
        parts = net.parts(pair)
        displacement = net.transform(parts["state"], pair).moving_to_fixed()
        assert displacement.abs().max() < 1e-2  # heads of fields start at 1e-5
        assert net(pair).shape == (2, 1, *shape)
        assert parts["moving"].shape == (2, 1, *shape)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("name", list(TRANSFORMATIONS))
def test_every_weight_gets_a_gradient(name: str, coarse: bool, dim: int) -> None:
    """What has none is not trained, and DistributedDataParallel refuses it."""
    net = network(TRANSFORMATIONS[name], dim, AdditiveNet(dim), coarse=coarse)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    net(torch.rand(2, 2, *SHAPES[dim])).square().mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_both_images_pass_the_same_itn(dim: int) -> None:
    net = network(Affine(), dim, UNet(dim, 1, 3, (4, 8)), channels=3)
    image = torch.rand(1, 1, *SHAPES[dim])
    parts = net.parts(torch.cat([image, image], dim=1))
    torch.testing.assert_close(parts["moving"], parts["fixed"])
    torch.testing.assert_close(parts["moving"], net.represent(image))


def test_without_itn_the_images_are_registered_themselves(dim: int) -> None:
    net = network(Affine(), dim, None)
    pair = torch.rand(1, 2, *SHAPES[dim])
    parts = net.parts(pair)
    torch.testing.assert_close(torch.cat([parts["moving"], parts["fixed"]], dim=1), pair)


def test_bounds_hold_whatever_the_weights(dim: int) -> None:
    net = network(TRANSFORMATIONS["b_spline"], dim, None)
    pair = torch.rand(1, 2, *SHAPES[dim])
    state = tuple(1e3 * torch.randn_like(tensor) for tensor in net.parts(pair)["state"])
    displacement = net.transform(state, pair).moving_to_fixed() * torch.tensor((1.0, 2.0, 1.5)[:dim]).reshape(
        1, dim, *[1] * dim
    )
    assert displacement.abs().max() <= 4.0 + 1e-4  # millimetres: a spline lies between its coefficients
    net = network(TRANSFORMATIONS["shear"], dim, None)
    extreme = net.transform((torch.full_like(net.parts(pair)["state"][0], 1e3),), pair)
    torch.testing.assert_close(extreme.affine[0, :, -1], torch.full((dim,), 3.0))


def test_the_small_itn_has_the_size_of_the_papers_code_and_knows_no_unit_of_intensity(dim: int) -> None:
    net = AdditiveNet(dim)
    if dim == 2:
        assert sum(parameter.numel() for parameter in net.parameters()) == 5031
    image = torch.rand(1, 1, *SHAPES[dim])
    torch.testing.assert_close(net(image), net(255 * image + 10), rtol=1e-4, atol=1e-4)


def test_maps_of_many_structures_are_independent() -> None:
    """A linear layer makes of two features no more than two maps; the others are mixtures of them."""
    maps = AdditiveNet(2, out_channels=8)(torch.rand(1, 1, 64, 64))[0].flatten(1)
    assert torch.linalg.matrix_rank(maps - maps.mean(dim=1, keepdim=True), rtol=1e-4) == 8


def test_an_odd_number_of_channels_is_no_pair(dim: int) -> None:
    with pytest.raises(InputError, match="even number of channels"):
        network(Affine(), dim, None)(torch.rand(1, 3, *SHAPES[dim]))
