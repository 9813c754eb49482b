# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ignite.engine import Engine
from monai.networks.nets import UNet as MonaiUNet
from torch import nn

from atlas_istn.errors import InputError
from atlas_istn.inferers.refine import RefinementInferer
from atlas_istn.networks import AtlasISTN, SpatialTransformerNetwork, UNet
from atlas_istn.spatial import precision
from atlas_istn.training.atlas_builder import AtlasBuilder, FinalAtlas
from atlas_istn.training.handlers import BestModel

SHAPE = (20, 16)
Build = Callable[..., AtlasISTN]


class Shift(nn.Module):
    """An STN that answers with a given translation, as fractions of half the extent, and no deformation."""

    def __init__(self, *fractions: float) -> None:
        super().__init__()
        self.register_buffer("parameters_", torch.tensor([[*fractions, *[0.0] * (5 - len(fractions))]]))

    def forward(self, labelmaps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch = len(labelmaps)
        return torch.zeros(batch, 2, *[n // 2 for n in SHAPE]), self.parameters_.expand(batch, -1)


def cases(count: int = 5) -> list[dict[str, torch.Tensor]]:
    """Images and soft labelmaps of single cases."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 1, *SHAPE, generator=generator)
    foreground = torch.rand(count, 1, *SHAPE, generator=generator)
    return [{"image": x, "label": torch.cat([1 - y, y])} for x, y in zip(images, foreground, strict=True)]


def batches(data: list[dict[str, torch.Tensor]], size: int) -> Iterable[dict[str, torch.Tensor]]:
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    return [{key: torch.stack([case[key] for case in part]) for key in ("image", "label")} for part in parts]


def mean_of(data: list[dict[str, torch.Tensor]], key: str) -> torch.Tensor:
    return torch.stack([case[key] for case in data]).mean(dim=0, keepdim=True)


def disturbed_network() -> AtlasISTN:
    """A small network that deforms; the same in every process."""
    torch.manual_seed(0)
    network = AtlasISTN(UNet(2, 1, 2, (4, 8)), SpatialTransformerNetwork(2, 2, (4, 8)), SHAPE, 2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def atlas_after(network: AtlasISTN, loader: Iterable[dict[str, Any]], rate: float = 0.3) -> torch.Tensor:
    """Atlas image and labelmap after the start and one epoch."""
    builder = AtlasBuilder(network, loader, rate)
    builder.initialise()
    builder.update(1)
    return torch.cat([network.atlas_image, network.atlas_labels], dim=1)


def test_starts_as_the_mean_of_the_undeformed_cases(tiny_network: Build) -> None:
    network = tiny_network(SHAPE)
    AtlasBuilder(network, batches(cases(), 2)).initialise()
    torch.testing.assert_close(network.atlas_image, mean_of(cases(), "image"))
    torch.testing.assert_close(network.atlas_labels, mean_of(cases(), "label"))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_does_not_depend_on_the_batch_size(size: int) -> None:
    whole = atlas_after(disturbed_network(), batches(cases(), 5))
    streamed = atlas_after(disturbed_network(), batches(cases(), size))
    # The order of a float32 sum; convolutions of other batch sizes may take other kernels.
    torch.testing.assert_close(streamed, whole, rtol=0, atol=1e-5)


def test_moves_towards_the_cases_warped_by_a_known_translation(tiny_network: Build) -> None:
    network = tiny_network(SHAPE)
    # The network bounds a translation by limit · tanh(t / limit), the limit being half the extent; here t becomes 2 mm.
    half = (SHAPE[0] - 1) / 2
    network.stn = Shift(math.atanh(2 / half))
    start_image, start_labels = network.atlas_image.clone(), network.atlas_labels.clone()
    AtlasBuilder(network, batches(cases(), 2), rate=0.25).update(1)
    # z ∘ Φ with Φ(p) = p + 2: the rows move up by two, the last row is repeated.
    rows = [min(row + 2, SHAPE[0] - 1) for row in range(SHAPE[0])]
    expected_image = 0.75 * start_image + 0.25 * mean_of(cases(), "image")[:, :, rows]
    expected_labels = 0.75 * start_labels + 0.25 * mean_of(cases(), "label")[:, :, rows]
    torch.testing.assert_close(network.atlas_image, expected_image, rtol=0, atol=1e-5)
    torch.testing.assert_close(network.atlas_labels, expected_labels, rtol=0, atol=1e-5)


def test_an_stn_that_moves_all_labels_out_of_the_image_is_refused(tiny_network: Build) -> None:
    label = torch.zeros(2, *SHAPE)
    label[1, 2:7, 4:12] = 1
    network, data = tiny_network(SHAPE), [{"image": torch.rand(1, *SHAPE), "label": label}]
    before = network.atlas_labels.clone()
    network.stn = Shift(9.0)  # by its bound, half the extent: these rows of the case come to lie outside
    with pytest.raises(InputError, match=r"out of the atlas's image: 0% of their volume is left.*loss_stiff"):
        AtlasBuilder(network, batches(data, 1)).update(1)
    assert torch.equal(network.atlas_labels, before)
    label.zero_()  # a case that has no label loses none
    AtlasBuilder(network, batches(data, 1)).update(1)


def test_takes_the_batches_in_turn(tiny_network: Build) -> None:
    data = cases(6)

    def after(parts: int, epoch: int) -> torch.Tensor:
        network = tiny_network(SHAPE)
        AtlasBuilder(network, batches(data, 1), rate=1.0, parts=parts).update(epoch)
        return network.atlas_image

    # A network that deforms next to nothing: with a rate of 1 the atlas is the mean of the epoch's part.
    for epoch in (1, 2, 3, 4):
        own = [case for number, case in enumerate(data) if number % 3 == (epoch - 1) % 3]
        torch.testing.assert_close(after(3, epoch), mean_of(own, "image"), rtol=0, atol=1e-3)
    torch.testing.assert_close(after(99, 2), data[1]["image"][None], rtol=0, atol=1e-3)  # never less than a batch
    torch.testing.assert_close(after(1, 2), mean_of(data, "image"), rtol=0, atol=1e-3)


def test_leaves_nothing_behind_but_the_atlas(tiny_network: Build) -> None:
    itn = MonaiUNet(2, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,), norm="batch", dropout=0.2)
    network = tiny_network(SHAPE, itn=itn).train()
    before = {name: value.clone() for name, value in network.state_dict().items() if not name.startswith("atlas")}
    atlas_after(network, batches(cases(), 2))
    # Batch statistics included, which a pass in training mode would move.
    for name, value in before.items():
        assert torch.equal(network.state_dict()[name], value), name
    assert network.training
    assert network.itn.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network.atlas_labels.requires_grad
    assert network.atlas_labels.grad_fn is None
    atlas_after(network.eval(), batches(cases(), 2))
    assert not network.training


def test_bf16_pass_keeps_the_sum_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "computes_bf16", lambda device_type: True)
    network = disturbed_network()
    exact = atlas_after(disturbed_network(), batches(cases(), 2))
    builder = AtlasBuilder(network, batches(cases(), 2), 0.3, amp=True)
    builder.initialise()
    builder.update(1)
    assert network.atlas_labels.dtype == torch.float32
    # bf16 convolutions change the predicted maps by a fraction of a voxel, on images of white noise.
    torch.testing.assert_close(network.atlas_labels, exact[:, 1:], rtol=0, atol=0.05)


def test_builds_at_the_first_epoch_and_moves_after_every_one(tiny_network: Build) -> None:
    calls: list[str] = []

    class Recorded(AtlasBuilder):
        def initialise(self) -> None:
            calls.append("initialise")

        def update(self, epoch: int) -> None:
            calls.append(f"update {epoch}")

    def train(start_epoch: int) -> list[str]:
        calls.clear()
        engine = Engine(lambda engine, batch: None)
        Recorded(tiny_network(SHAPE), []).attach(engine)
        if start_epoch:
            engine.load_state_dict({"epoch_length": 1, "max_epochs": 3, "iteration": start_epoch})
        engine.run([0], max_epochs=3)
        return list(calls)

    assert train(0) == ["initialise", "update 1", "update 2", "update 3"]
    assert train(1) == ["update 2", "update 3"]  # a resumed run brings its atlas along


def _build_in_process(rank: int, folder: str) -> None:
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    share = cases()[rank::2]  # 3 cases and 2: a mean of the ranks' means would be wrong
    torch.save(atlas_after(disturbed_network(), batches(share, 2)), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_build_the_atlas_of_one(tmp_path: Path) -> None:
    # Forked, so that nothing is imported anew: with one thread and no backward pass there is nothing to trip over.
    mp.start_processes(_build_in_process, args=(str(tmp_path),), nprocs=2, start_method="fork")
    single = atlas_after(disturbed_network(), batches(cases(), 2))
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(ranks[0], ranks[1])
    torch.testing.assert_close(ranks[0], single, rtol=0, atol=1e-5)


def shifted_rings(tiny_network: Build, ring: Callable[..., torch.Tensor]) -> tuple[AtlasISTN, list[dict[str, Any]]]:
    """A cohort of one ring shifted by up to 2 voxels along both axes, and a network whose STN does not register it."""
    labels = ring((24, 24))
    moves = [(dy, dx) for dy in (-2, 0, 2) for dx in (-2, 0, 2)]
    rings = [labels.roll(move, dims=(2, 3)) for move in moves]
    return tiny_network((24, 24)), batches([{"image": r[0, 1:], "label": r[0]} for r in rings], 3)


def blur(labels: torch.Tensor) -> float:
    return float((labels * (1 - labels)).mean())


def test_refined_registrations_rebuild_a_sharper_atlas(tiny_network: Build, ring: Callable[..., torch.Tensor]) -> None:
    network, cohort = shifted_rings(tiny_network, ring)
    builder = AtlasBuilder(network, cohort)
    builder.initialise()
    own = blur(ring((24, 24)))  # a ring has soft edges before any averaging
    blurs = [blur(network.atlas_labels) - own]
    for _ in range(2):
        builder.rebuild(RefinementInferer(iterations=40, learning_rate=0.1, regularisation=0.05))
        blurs.append(blur(network.atlas_labels) - own)
    assert blurs[1] < 0.5 * blurs[0]
    assert blurs[2] < blurs[1]
    torch.testing.assert_close(network.atlas_labels.sum(dim=1), torch.ones(1, 24, 24), atol=1e-4, rtol=0)


def test_an_epoch_may_move_the_atlas_by_refined_registrations(
    tiny_network: Build, ring: Callable[..., torch.Tensor]
) -> None:
    inferer = RefinementInferer(iterations=5, learning_rate=0.1, regularisation=0.05)
    network, cohort = shifted_rings(tiny_network, ring)
    AtlasBuilder(network, cohort).initialise()
    rebuilt = copy.deepcopy(network)
    AtlasBuilder(rebuilt, cohort).rebuild(inferer)
    AtlasBuilder(network, cohort, rate=1.0, inferer=inferer).update(1)
    torch.testing.assert_close(network.atlas_labels, rebuilt.atlas_labels)


def test_the_final_atlas_starts_from_the_best_model_and_is_validated(
    tiny_network: Build, ring: Callable[..., torch.Tensor], tmp_path: Path
) -> None:
    network, cohort = shifted_rings(tiny_network, ring)
    kept = BestModel(network, str(tmp_path / "model.pt"))
    best = kept.weights = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)  # what the training did after its best epoch
    validator, trainer = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    validator.run = lambda epoch: seen.append(epoch)  # type: ignore[method-assign]
    seen: list[int] = []
    trainer.state.device = "cpu"
    builder = AtlasBuilder(network, cohort)
    FinalAtlas(builder, RefinementInferer(iterations=1), kept, validator, 1).attach(trainer)
    trainer.run([0], max_epochs=2)
    assert seen == [2]
    assert not torch.equal(network.atlas_labels, best["atlas_labels"])
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, best[name]), name
