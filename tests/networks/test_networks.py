# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import DynUNet, SegResNet
from monai.networks.nets import UNet as MonaiUNet
from torch import nn

from atlas_istn.errors import InputError
from atlas_istn.networks import AtlasISTN, JointForward, SpatialTransformerNetwork, UNet
from atlas_istn.spatial import precision

Build = Callable[..., AtlasISTN]
SHAPES = {2: (32, 24), 3: (16, 24, 12)}


def disturb(network: nn.Module, size: float = 0.1) -> nn.Module:
    """Move all weights, so that the network does not predict the identity any more."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return network


def monai_unet(dim: int = 2) -> nn.Module:
    return MonaiUNet(spatial_dims=dim, in_channels=1, out_channels=2, channels=(4, 8, 8), strides=(2, 2))


def dyn_unet(dim: int = 2) -> nn.Module:
    layers = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 8]}
    return DynUNet(spatial_dims=dim, in_channels=1, out_channels=2, **layers)


def seg_res_net(dim: int = 2) -> nn.Module:
    return SegResNet(dim, init_filters=8, in_channels=1, out_channels=2, blocks_down=(1, 1), blocks_up=(1,))


class Particular(UNet):
    """Checks its input itself, as MONAI's SwinUNETR does."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if any(size % 8 for size in image.shape[2:]):
            raise ValueError("spatial dimensions should be divisible by 8")
        return super().forward(image)


def parts(dim: int, further: bool) -> dict[str, Any]:
    """What a tiny network has beyond the paper's: heads at each scale and a second pass of the STN."""
    stn = SpatialTransformerNetwork(dim, 2, (4, 8), coarse_heads=True)
    return {"stn": stn, "stn_passes": 2} if further else {}


@pytest.mark.parametrize("further", [False, True])
def test_first_prediction_is_the_identity(further: bool, dim: int, tiny_network: Build) -> None:
    network = tiny_network(SHAPES[dim], **parts(dim, further))
    image = torch.rand(2, 1, *SHAPES[dim])
    transform = network.transform(*network.register(network.segment(image)))
    # The velocity head starts at 1e-5.
    assert transform.moving_to_fixed().abs().max() < 1e-3
    torch.testing.assert_close(network(image), network.atlas_labels.expand(2, -1, *SHAPES[dim]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("further", [False, True])
def test_forward_is_the_one_pass_segmentation(further: bool, dim: int, tiny_network: Build) -> None:
    network = disturb(tiny_network(SHAPES[dim], **parts(dim, further)))
    image = torch.rand(2, 1, *SHAPES[dim])
    prediction = network.segment(image)
    transform = network.transform(*network.register(prediction))
    assert prediction.shape == (2, 2, *SHAPES[dim])
    assert transform.moving_to_fixed().abs().max() > 0.1
    assert torch.equal(network(image), transform.to_fixed(network.atlas_labels))


def test_velocity_has_half_the_resolution_whatever_the_size(dim: int) -> None:
    network = SpatialTransformerNetwork(dim, 4, (4, 8, 8))
    for shape in [(16, 24, 12), (15, 23, 9), (31, 17, 13)]:
        velocity, parameters = network(torch.rand(1, 4, *shape[:dim]))
        assert velocity.shape == (1, dim, *[-(-n // 2) for n in shape[:dim]])
        assert parameters.shape == (1, 5 if dim == 2 else 9)


def test_odd_sizes_pass_through_the_whole_network(dim: int, tiny_network: Build) -> None:
    shape = (29, 19, 13)[:dim]
    network = disturb(tiny_network(shape))
    assert network(torch.rand(1, 1, *shape)).shape == (1, 2, *shape)


def test_a_second_pass_sees_the_subject_where_the_first_has_brought_it(dim: int, tiny_network: Build) -> None:
    network = disturb(tiny_network(SHAPES[dim], stn_passes=2))
    seen, answers = [], []

    def note(_: nn.Module, inputs: tuple[torch.Tensor], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        seen.append(inputs[0])
        answers.append(output)

    network.stn.register_forward_hook(note)
    subject = network.segment(torch.rand(2, 1, *SHAPES[dim]))
    velocity, parameters = network.register(subject)
    moved = network.transform(*answers[0]).to_moving(subject)
    torch.testing.assert_close(seen[1][:, :1], moved[:, 1:])
    torch.testing.assert_close(seen[1][:, 1:], network.atlas_labels[:, 1:].expand(2, -1, *SHAPES[dim]))
    torch.testing.assert_close(velocity, answers[0][0] + answers[1][0])
    torch.testing.assert_close(parameters, answers[0][1] + answers[1][1])


@pytest.mark.parametrize("further", [False, True])
def test_torchscript_equals_eager(further: bool, dim: int, tiny_network: Build, tmp_path: Path) -> None:
    network = disturb(tiny_network(SHAPES[dim], **parts(dim, further))).eval()
    torch.jit.script(network).save(str(tmp_path / "model.ts"))
    scripted = torch.jit.load(str(tmp_path / "model.ts"))
    image = torch.rand(2, 1, *SHAPES[dim])
    for _ in range(3):  # TorchScript optimises in its second and third call
        torch.testing.assert_close(scripted(image), network(image), rtol=0, atol=1e-5)
    assert torch.equal(scripted.atlas_labels, network.atlas_labels)


@pytest.mark.parametrize("itn", [monai_unet, dyn_unet, seg_res_net])
def test_any_monai_network_serves_as_itn(itn: Callable[..., nn.Module], dim: int, tiny_network: Build) -> None:
    network = tiny_network(SHAPES[dim], itn=itn(dim)).eval()
    assert network(torch.rand(1, 1, *SHAPES[dim])).shape == (1, 2, *SHAPES[dim])


@pytest.mark.parametrize(
    ("itn", "advice"),
    [
        (monai_unet, r"stride 4.*\[20, 32\]"),
        (dyn_unet, r"stride 4.*\[20, 32\]"),
        (lambda: Particular(2, 1, 2, (4, 8)), r"stride 8.*\[24, 32\]"),
    ],
    ids=["UNet", "DynUNet", "Particular"],
)
def test_a_size_that_the_itn_cannot_take_is_refused(
    itn: Callable[[], nn.Module], advice: str, tiny_network: Build
) -> None:
    with pytest.raises(InputError, match=advice):
        tiny_network((18, 30), itn=itn())


@pytest.mark.parametrize("itn", [UNet(2, 1, 3, (4, 8)), UNet(2, 2, 2, (4, 8)), UNet(3, 1, 2, (4, 8))])
def test_an_itn_with_other_channels_or_dimensions_is_refused(itn: nn.Module, tiny_network: Build) -> None:
    with pytest.raises(InputError, match=r"spatial_dims, in_channels and out_channels"):
        tiny_network((32, 24), itn=itn)


def test_checking_the_itn_leaves_it_as_it_was(tiny_network: Build) -> None:
    itn = MonaiUNet(2, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,), norm="batch")
    before = {name: value.clone() for name, value in itn.state_dict().items()}
    network = tiny_network((32, 24), itn=itn)
    assert network.itn.training
    assert all(torch.equal(value, before[name]) for name, value in network.itn.state_dict().items())


def test_one_state_dict_is_the_whole_model(dim: int, tiny_network: Build, tmp_path: Path) -> None:
    network = disturb(tiny_network(SHAPES[dim]))
    network.atlas_labels.mul_(0.9)
    network.affine_gate.fill_(0)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    other = tiny_network(SHAPES[dim])
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    image = torch.rand(1, 1, *SHAPES[dim])
    assert torch.equal(other(image), network(image))
    assert torch.equal(other.atlas_image, network.atlas_image)


def test_a_closed_gate_leaves_the_affine_at_the_identity(dim: int, tiny_network: Build) -> None:
    network = disturb(tiny_network(SHAPES[dim]))
    image = torch.rand(1, 1, *SHAPES[dim])
    assert not torch.equal(network.affine(network.register(network.segment(image))[1])[0], torch.eye(dim, dim + 1))
    network.affine_gate.fill_(0)
    assert torch.equal(network.affine(network.register(network.segment(image))[1])[0], torch.eye(dim, dim + 1))


def test_translation_of_the_network_is_a_fraction_of_half_the_extent(tiny_network: Build) -> None:
    network = tiny_network((33, 17), spacing=(2.0, 3.0), max_translation=1e4)
    parameters = torch.zeros(1, 5)
    parameters[0, 0], parameters[0, 1] = 0.5, -0.25
    # Half the extents are 32 and 24 mm.
    torch.testing.assert_close(network.affine(parameters)[0, :, 2], torch.tensor([16.0, -6.0]))


def test_joint_forward_in_bf16_yields_float32_close_to_eager(
    dim: int, tiny_network: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "computes_bf16", lambda device_type: True)
    network = tiny_network(SHAPES[dim])
    image = torch.rand(2, 1, *SHAPES[dim])
    exact, rounded = JointForward(network)(image), JointForward(network, amp=True)(image)
    assert set(exact) == {"prediction", "velocity", "parameters"}
    for name in exact:
        assert rounded[name].dtype == torch.float32
    # bf16 has 8 bits of mantissa; prediction are near 1.
    torch.testing.assert_close(rounded["prediction"], exact["prediction"], rtol=0.02, atol=0.02)
    assert not torch.equal(rounded["prediction"], exact["prediction"])
