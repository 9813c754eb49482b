# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Fine-tuning begins with what fits of another model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from atlas_istn.models.provenance import SETTINGS, save_model
from atlas_istn.networks import AtlasISTN
from atlas_istn.training.initial import InitialWeights

Build = Callable[..., AtlasISTN]
HERE = {
    "label_names": {"0": "background", "1": "a"},
    "label_values": [0, 1],
    "spatial_size": [24, 24],
    "spacing": [1, 1],
}


def network(build: Build, seed: int, itn: torch.nn.Module | None = None) -> AtlasISTN:
    torch.manual_seed(seed)
    made = build((24, 24), itn=itn or torch.nn.Conv2d(1, 2, 3, padding=1))
    torch.manual_seed(seed)  # the fixture seeds for itself
    made.atlas_labels.uniform_()
    return made


def test_all_of_an_equal_model_is_taken_its_atlas_included(tiny_network: Build, tmp_path: Path) -> None:
    first, second = network(tiny_network, 0), network(tiny_network, 1)
    save_model(first.state_dict(), tmp_path / "model.pt", {SETTINGS: HERE})
    initial = InitialWeights(second, str(tmp_path / "model.pt"), HERE)
    initial()
    assert initial.atlas
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_what_does_not_fit_begins_anew_and_is_named(
    tiny_network: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first, second = network(tiny_network, 0), network(tiny_network, 1, torch.nn.Conv2d(1, 2, 1))
    before = second.itn.weight.detach().clone()
    save_model(first.state_dict(), tmp_path / "model.pt", {SETTINGS: {**HERE, "spacing": [2, 2]}})
    initial = InitialWeights(second, str(tmp_path / "model.pt"), HERE)
    initial()
    assert not initial.atlas
    assert torch.equal(second.itn.weight, before)
    assert not torch.equal(second.atlas_labels, first.atlas_labels)
    for name, value in second.stn.state_dict().items():
        assert torch.equal(value, first.stn.state_dict()[name])
    assert "begin anew: " in caplog.text
    assert "itn.weight" in caplog.text
    assert "the atlas is built anew" in caplog.text


def test_a_model_without_an_atlas_gives_none(tiny_network: Build, tmp_path: Path) -> None:
    first, second = network(tiny_network, 0), network(tiny_network, 1)
    before = second.atlas_labels.clone()
    state = {**first.state_dict(), "atlas_labels": torch.zeros_like(before)}  # as of a U-Net
    save_model(state, tmp_path / "model.pt", {SETTINGS: HERE})
    initial = InitialWeights(second, str(tmp_path / "model.pt"), HERE)
    initial()
    assert not initial.atlas
    assert torch.equal(second.atlas_labels, before)
    assert torch.equal(second.itn.weight, first.itn.weight)


def test_without_a_model_nothing_happens(tiny_network: Build) -> None:
    made = network(tiny_network, 0)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    InitialWeights(made, None, HERE)()
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
