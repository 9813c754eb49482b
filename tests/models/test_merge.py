# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Models whose ITN is the mean of several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from atlas_istn.errors import InputError
from atlas_istn.models.merge import merge_itns
from atlas_istn.networks import AtlasISTN, MeanOfNetworks, UNet

Build = Callable[..., AtlasISTN]


def mean_of(members: int, width: int = 4) -> MeanOfNetworks:
    return MeanOfNetworks([UNet(2, 1, 2, (width, 8)) for _ in range(members)])


def test_the_mean_is_that_of_the_probabilities() -> None:
    itn, image = mean_of(2), torch.rand(1, 1, 16, 16)
    each = [network(image).softmax(dim=1) for network in itn.networks]
    torch.testing.assert_close(itn(image), (each[0] + each[1]) / 2)
    assert not torch.allclose(each[0], each[1])


def test_a_merged_model_predicts_the_mean(tiny_network: Build, tmp_path: Path) -> None:
    first, second = tiny_network((16, 16), itn=mean_of(1)), tiny_network((16, 16), itn=mean_of(1))
    for name, network in (("first", first), ("second", second)):
        torch.save(network.state_dict(), tmp_path / f"{name}.pt")
    path = merge_itns(tmp_path / "merged.pt", tmp_path / "first.pt", tmp_path / "second.pt")
    merged = tiny_network((16, 16), itn=mean_of(2))
    merged.load_state_dict(torch.load(path, weights_only=True))
    image = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(merged.segment(image), (first.segment(image) + second.segment(image)) / 2)
    for name, value in first.state_dict().items():
        if not name.startswith("itn."):
            assert torch.equal(merged.state_dict()[name], value), name


def test_what_cannot_be_merged_is_named(tiny_network: Build, tmp_path: Path) -> None:
    torch.save(tiny_network((16, 16), itn=mean_of(1)).state_dict(), tmp_path / "narrow.pt")
    torch.save(tiny_network((16, 16), itn=mean_of(1, width=8)).state_dict(), tmp_path / "wide.pt")
    torch.save(tiny_network((16, 16)).state_dict(), tmp_path / "plain.pt")
    with pytest.raises(InputError, match=r"at least two model files, found 1"):
        merge_itns(tmp_path / "merged.pt", tmp_path / "narrow.pt")
    with pytest.raises(InputError, match="another architecture"):
        merge_itns(tmp_path / "merged.pt", tmp_path / "narrow.pt", tmp_path / "wide.pt")
    with pytest.raises(InputError, match=r"plain\.pt: its ITN is no MeanOfNetworks"):
        merge_itns(tmp_path / "merged.pt", tmp_path / "narrow.pt", tmp_path / "plain.pt")
    assert not (tmp_path / "merged.pt").exists()
