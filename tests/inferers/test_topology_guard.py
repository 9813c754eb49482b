# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from atlas_istn.inferers.refine import RefinementInferer
from atlas_istn.inferers.topology_guard import TopologyGuard, atlas_signature
from atlas_istn.networks import AtlasISTN
from atlas_istn.topology import Signature, TopologyNote
from support import ROOT

BENCHMARK = ROOT / "benchmarks" / "topology.py"


class Start(nn.Module):
    """An STN that answers each case of a batch with the velocity it was made with."""

    def __init__(self, velocity: Tensor) -> None:
        super().__init__()
        self.velocity = velocity

    def forward(self, labelmaps: Tensor) -> tuple[Tensor, Tensor]:
        # A lone case of the batch is known by its prediction's level, which the tests set.
        index = (labelmaps[:, 0].flatten(1).amax(dim=1) * 10).round().long() % len(self.velocity)
        return self.velocity[index], torch.zeros(len(labelmaps), 5 if labelmaps.ndim == 4 else 9)


@pytest.fixture
def folding(
    tiny_network: Callable[..., AtlasISTN], smooth_field: Callable[..., Tensor]
) -> Callable[[int], tuple[AtlasISTN, Tensor]]:
    """A network whose second case starts from a field that folds, and two images that are predictions already."""

    def build(dim: int) -> tuple[AtlasISTN, Tensor]:
        shape, half = (32, 32) if dim == 2 else (16, 16, 16), (16, 16) if dim == 2 else (8, 8, 8)
        wild = smooth_field(half, amplitude=14.0, sigma=1.0, seed=3).float()
        start = Start(torch.cat([torch.zeros_like(wild), wild]))
        network = tiny_network(shape, itn=nn.Identity(), in_channels=2, stn=start)
        ring = network.atlas_labels
        images = torch.cat([ring / ring[:, 1:].max(), 0.9 * ring / ring[:, 1:].max()])
        return network, images

    return build


def folds(transform: Any) -> list[bool]:
    return (transform.jacobian_determinant() <= 0).flatten(1).any(dim=1).tolist()


def test_a_fold_is_refined_away_with_a_larger_lambda_and_the_other_case_left_alone(
    dim: int, folding: Callable[[int], tuple[AtlasISTN, Tensor]]
) -> None:
    network, images = folding(dim)
    settings = {"iterations": 8, "regularisation": 1e-4, "stiff_regularisation": 1e-4}
    plain = RefinementInferer(**settings).infer(images, network)
    assert folds(plain.transform) == [False, True]
    result = TopologyGuard(RefinementInferer(**settings)).infer(images, network)
    assert folds(result.transform) == [False, False]
    assert [note.step for note in result.topology] == ["none", "lambda"]
    assert all(note.kept for note in result.topology)
    torch.testing.assert_close(result.segmentation[0], plain.segmentation[0], rtol=0, atol=0)
    target = atlas_signature(network)
    for soft in result.segmentation:
        assert not target.violations(soft.argmax(dim=0).numpy())


def test_without_iterations_folds_go_too(dim: int, folding: Callable[[int], tuple[AtlasISTN, Tensor]]) -> None:
    network, images = folding(dim)
    result = TopologyGuard(RefinementInferer(iterations=0)).infer(images, network)
    assert folds(result.transform) == [False, False]


def test_batches_and_single_cases_agree(folding: Callable[[int], tuple[AtlasISTN, Tensor]]) -> None:
    network, images = folding(2)
    inferer = TopologyGuard(RefinementInferer(iterations=8, regularisation=1e-4))
    together = inferer.infer(images, network).segmentation
    alone = torch.cat([inferer.infer(image[None], network).segmentation for image in images])
    # Adam divides by the size of the gradient, which brings rounding up to 1e-5 or so.
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-3)


def test_it_works_under_inference_mode_and_by_keyword_and_keeps_no_state(
    folding: Callable[[int], tuple[AtlasISTN, Tensor]],
) -> None:
    network, images = folding(2)
    inferer = TopologyGuard(RefinementInferer(iterations=4, regularisation=1e-4))
    before = dict(vars(inferer)), dict(vars(inferer.inferer))
    with torch.inference_mode():
        first = inferer(inputs=images, network=network)
    assert (vars(inferer), vars(inferer.inferer)) == before
    torch.testing.assert_close(first, inferer(images, network), rtol=0, atol=0)


def test_a_call_keeps_the_metadata_of_the_images(folding: Callable[[int], tuple[AtlasISTN, Tensor]]) -> None:
    """Hosts invert the preprocessing of what a call returns, by the metadata."""
    network, images = folding(2)
    batch = MetaTensor(images, affine=2.0 * torch.eye(4))
    segmentation = TopologyGuard(RefinementInferer(iterations=2))(batch, network)
    assert isinstance(segmentation, MetaTensor)
    assert torch.equal(segmentation.affine, batch.affine)


@pytest.mark.parametrize("iterations", [0, 8])
def test_topology_alone_is_mended_in_the_channels(tiny_network: Callable[..., AtlasISTN], iterations: int) -> None:
    """The map is left as it is: a stiffer one would cost far more than the few voxels that are wrong."""
    # The atlas has a hole of one voxel, which the prediction, shifted by half a voxel, closes.
    torch.manual_seed(0)
    shape = (16, 16)
    start = Start(torch.full((1, 2, 8, 8), 0.25))
    network = tiny_network(shape, itn=nn.Identity(), in_channels=2, stn=start)
    label = torch.zeros(shape)
    label[4:12, 4:12] = 1
    label[7, 7] = 0.35
    network.atlas_labels.copy_(torch.stack([1 - label, label])[None])
    closed = label.roll((1, 0), (0, 1)) / 2 + label.roll((0, 1), (0, 1)) / 2
    batch = torch.stack([1 - closed, closed])[None]
    inferer = RefinementInferer(iterations=iterations)
    plain = inferer.infer(batch, network)
    target = atlas_signature(network)
    assert target.violations(plain.segmentation[0].argmax(dim=0).numpy())
    result = TopologyGuard(inferer).infer(batch, network)
    assert not target.violations(result.segmentation[0].argmax(dim=0).numpy())
    assert result.topology == (TopologyNote("correction", True, 1),)
    changed = (result.segmentation != plain.segmentation).any(dim=1)
    assert changed.sum() == 1
    torch.testing.assert_close(result.transform.velocity, plain.transform.velocity, rtol=0, atol=0)


def test_a_changed_atlas_has_a_new_signature(tiny_network: Callable[..., AtlasISTN]) -> None:
    network = tiny_network((16, 16))
    assert atlas_signature(network).shapes[(1,)] == (1, 1, 0)
    network.atlas_labels[:, 1] = 0
    network.atlas_labels[:, 0] = 1
    assert atlas_signature(network) == Signature.of(np.zeros((16, 16), int), 2)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("topology_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("shape", ["letter", "ring", "shell"])
def test_nothing_slips_through_strong_fields_and_coarse_grids(shape: str, benchmark: ModuleType) -> None:
    cases = [(2, 5.0, 1.0, 0), (2, 5.0, 1.5, 1), (2, 5.0, 2.5, 2), (2, 9.0, 1.0, 3), (3, 3.0, 1.7, 4)]
    outcomes = [benchmark.stress(shape, *case) for case in cases]
    for case, outcome in zip(cases, outcomes, strict=True):
        assert outcome.kept == outcome.right, case
        assert not outcome.folded, case
        # On the grid of the model the topology is always reached.
        assert outcome.kept or case[2] > 1, case
    assert any(outcome.step != "none" for outcome in outcomes)
