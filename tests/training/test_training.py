# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

"""The trainer's handlers alone, and whole trainings of some seconds through the bundle's own configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events, State
from monai.bundle import ConfigWorkflow
from monai.data import Dataset
from monai.transforms import Compose, RandGaussianNoised
from PIL import Image

from atlas_istn.errors import InputError, input_error_behind
from atlas_istn.networks import AtlasISTN
from atlas_istn.training.handlers import BestModel, EarlyStop, EpochSchedule, TrainingCheckpoint
from atlas_istn.training.losses import AtlasISTNLoss
from support import ROOT

CONFIG = ROOT / "bundle" / "configs" / "train.yaml"
RUNS = ("whole", "parts")
Build = Callable[..., AtlasISTN]


@pytest.fixture(scope="module")
def ellipses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 8 noisy ellipses with a hole, 6 for training: PNG files, label values 0 and 255, as in letter_b."""
    folder = tmp_path_factory.mktemp("ellipses")
    rng = np.random.default_rng(0)
    y, x = np.indices((32, 32)) - 15.5
    entries = []
    for number in range(8):
        (a, b), (dy, dx) = rng.uniform(7, 11, 2), rng.uniform(-2, 2, 2)
        radius = ((y - dy) / a) ** 2 + ((x - dx) / b) ** 2
        label = ((radius < 1) & (radius > 0.15)).astype(np.uint8)
        for name, picture in [("images", 60 + 120 * label + rng.normal(0, 15, label.shape)), ("labels", 255 * label)]:
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")
        entries.append({"image": f"images/{number}.png", "label": f"labels/{number}.png"})
    (folder / "dataset.json").write_text(json.dumps({"training": entries[:6], "validation": entries[6:]}))
    return folder


@pytest.fixture
def training(ellipses: Path) -> Callable[..., ConfigWorkflow]:
    """A function that prepares train.yaml for the ellipses, with networks and images made small."""

    def prepare(output_dir: Path, **changes: Any) -> ConfigWorkflow:
        settings = {
            "bundle_root": str(CONFIG.parents[1]),
            "dataset_dir": str(ellipses),
            "output_dir": str(output_dir),
            "label_values": [0, 255],
            "spatial_size": [32, 32],
            "spacing": [1.0, 1.0],
            "itn#channels": [4, 8],
            "stn#channels": [4, 8],
            "batch_size": 2,
            "max_epochs": 4,
            "val_interval": 2,
            "refine_iterations": 20,
            "learning_rate": 0.01,
            "atlas_rate": 0.2,
            "loss_weights#fade_in_epoch": 1,
            "affine_start_epoch": 1,
            "device": "cpu",
        }
        workflow = ConfigWorkflow(str(CONFIG), workflow_type="train", logging_file=False, **settings | changes)
        workflow.initialize()
        return workflow

    return prepare


def states(workflow: ConfigWorkflow) -> dict[str, torch.Tensor]:
    return workflow.parser.get_parsed_content("network").state_dict()


def test_a_resumed_training_ends_like_an_uninterrupted_one(
    training: Callable[..., ConfigWorkflow], tmp_path: Path
) -> None:
    whole = training(tmp_path / "whole")
    whole.run()
    interrupted = training(tmp_path / "parts")

    @interrupted.parser.get_parsed_content("train#trainer").on(Events.EPOCH_STARTED(once=3))
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted.run()
    resumed = training(tmp_path / "parts", resume=True)
    # Another state of all random generators than the first run left at this point.
    torch.manual_seed(12345)
    resumed.run()

    for name, value in states(whole).items():
        torch.testing.assert_close(states(resumed)[name], value, rtol=0, atol=1e-6, msg=name)
    checkpoints = [torch.load(tmp_path / run / "checkpoints" / "checkpoint_4.pt", weights_only=True) for run in RUNS]
    assert checkpoints[0]["best"] == pytest.approx(checkpoints[1]["best"], abs=1e-6)
    best = [torch.load(tmp_path / run / "models" / "model.pt", weights_only=True) for run in RUNS]
    for name, value in best[0].items():
        torch.testing.assert_close(best[1][name], value, rtol=0, atol=1e-6, msg=name)

    # The training did something: the atlas holds the ring with its hole, and the epochs are on file.
    atlas = best[0]["atlas_labels"][0, 1]
    assert atlas[16, 16] < 0.4
    assert atlas[16, 22] > 0.6
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["checkpoint_4.pt"]
    assert list((tmp_path / "parts" / "tensorboard").iterdir())

    with pytest.raises(InputError, match=r"checkpoint_4\.pt.*does not fit this configuration"):
        run_to_input_error(training(tmp_path / "parts", resume=True, max_epochs=5, **{"itn#channels": [8, 8]}))


def run_to_input_error(workflow: ConfigWorkflow) -> None:
    """Run, and raise the user's mistake that engines and bundles may wrap into exceptions of their own."""
    try:
        workflow.run()
    except Exception as error:
        raise input_error_behind(error) or error from error


def checkpointing(folder: Path, resume: bool = False, width: int = 3) -> tuple[Engine, torch.nn.Module]:
    """An engine that adds 1 to a layer's weights at each epoch and saves them."""
    layer = torch.nn.Linear(width, 1)
    torch.nn.init.zeros_(layer.weight)
    engine = Engine(lambda engine, batch: None)
    engine.state.device = torch.device("cpu")

    @engine.on(Events.EPOCH_COMPLETED)
    def learn() -> None:
        layer.weight.data += 1

    TrainingCheckpoint(str(folder), {"layer": layer}, resume).attach(engine)
    return engine, layer


def test_only_the_newest_checkpoint_stays(tmp_path: Path) -> None:
    checkpointing(tmp_path)[0].run([0], max_epochs=3)
    engine, layer = checkpointing(tmp_path, resume=True)
    engine.run([0], max_epochs=12)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_12.pt"]
    assert (layer.weight == 12).all()


def test_a_new_training_replaces_the_checkpoint_of_an_older_one(tmp_path: Path) -> None:
    """Or a later resume would go on from the older one, whose epoch is higher."""
    checkpointing(tmp_path)[0].run([0], max_epochs=5)
    checkpointing(tmp_path)[0].run([0], max_epochs=2)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_2.pt"]


def test_an_interruption_while_saving_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = checkpointing(tmp_path)
    save = torch.save

    def interrupted_in_epoch_3(state: Any, file: Any) -> None:
        if engine.state.epoch < 3:
            return save(state, file)
        file.write(b"half a checkpoint")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted_in_epoch_3)
    with pytest.raises(KeyboardInterrupt):
        engine.run([0], max_epochs=4)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_2.pt"]
    engine, layer = checkpointing(tmp_path, resume=True)
    engine.run([0], max_epochs=4)
    assert (layer.weight == 4).all()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None], ids=["empty", "garbage", "truncated"])
def test_a_damaged_checkpoint_is_named(content: bytes | None, tmp_path: Path) -> None:
    checkpointing(tmp_path)[0].run([0], max_epochs=1)
    path = tmp_path / "checkpoint_1.pt"
    path.write_bytes(path.read_bytes()[:1000] if content is None else content)
    with pytest.raises(InputError, match=r"checkpoint_1\.pt is damaged or does not fit"):
        checkpointing(tmp_path, resume=True)[0].run([0], max_epochs=2)


def test_a_checkpoint_that_does_not_fit_is_named(tmp_path: Path) -> None:
    checkpointing(tmp_path)[0].run([0], max_epochs=1)
    with pytest.raises(InputError, match=r"checkpoint_1\.pt is damaged or does not fit.*configuration that wrote it"):
        checkpointing(tmp_path, resume=True, width=4)[0].run([0], max_epochs=2)


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    engine, layer = checkpointing(tmp_path, resume=True)
    engine.run([0], max_epochs=2)
    assert (layer.weight == 2).all()


def test_a_better_model_found_after_the_last_epoch_is_known_when_resumed(tiny_network: Build, tmp_path: Path) -> None:
    best = BestModel(tiny_network((16, 16)), str(tmp_path / "model.pt"))
    engine = Engine(lambda engine, batch: None)

    @engine.on(Events.EPOCH_COMPLETED)
    def validate() -> None:
        best.metric = 0.8

    @engine.on(Events.COMPLETED)
    def final_atlas() -> None:
        best.metric = 0.9

    TrainingCheckpoint(str(tmp_path), {"best": best}).attach(engine)
    engine.run([0], max_epochs=1)
    assert torch.load(tmp_path / "checkpoint_1.pt", weights_only=True)["best"]["metric"] == 0.9


def validated(scores: list[float]) -> tuple[Engine, Engine]:
    """A trainer of many epochs and a validator that it runs after each, whose key metric follows the scores."""
    trainer, validator = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    validator.state.key_metric_name = "dice"
    course = iter(scores)

    @validator.on(Events.EPOCH_COMPLETED)
    def score() -> None:
        validator.state.metrics = {"dice": next(course)}

    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: validator.run([0]))
    return trainer, validator


def test_stops_when_the_key_metric_has_stopped_improving(tiny_network: Build, tmp_path: Path) -> None:
    trainer, validator = validated([0.1, 0.5, 0.4, 0.6, 0.6, 0.5, 0.7, 0.8])
    best = BestModel(tiny_network((16, 16)), str(tmp_path / "model.pt"))
    best.attach(validator)
    EarlyStop(best, patience=2).attach(trainer)
    trainer.run([0], max_epochs=8)
    assert trainer.state.epoch == 6  # the second validation in a row that is no better than 0.6


def scored(metric: float) -> Engine:
    engine = Engine(lambda engine, batch: None)
    engine.state = State(metrics={"dice": metric}, key_metric_name="dice")
    return engine


def test_the_best_model_is_kept(tiny_network: Build, tmp_path: Path) -> None:
    network = tiny_network((16, 16))
    path = tmp_path / "new folder" / "model.pt"
    best = BestModel(network, str(path))
    for epoch, metric in enumerate([0.5, 0.7, 0.6, 0.7]):
        network.atlas_image.fill_(epoch)
        best(scored(metric))
    assert (torch.load(path, weights_only=True)["atlas_image"] == 1).all()
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.json", "model.pt"]

    resumed = BestModel(network, str(path))
    resumed.load_state_dict(best.state_dict())
    resumed(scored(0.65))
    assert (torch.load(path, weights_only=True)["atlas_image"] == 1).all()


def test_the_best_model_appears_whole_or_not_at_all(
    tiny_network: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = BestModel(tiny_network((16, 16)), str(tmp_path / "model.pt"))
    best(scored(0.5))
    before = (tmp_path / "model.pt").read_bytes()

    def interrupted(state: Any, file: Any) -> None:
        Path(file).write_bytes(b"half a model")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        best(scored(0.6))
    assert (tmp_path / "model.pt").read_bytes() == before


@pytest.mark.parametrize(("start", "gates"), [(0, [1, 1, 1]), (2, [0, 0, 1]), (-1, [0, 0, 0])])
def test_the_affine_head_joins_at_its_epoch(start: int, gates: list[int], tiny_network: Build) -> None:
    network = tiny_network((16, 16))
    loss = AtlasISTNLoss(network)
    schedule = EpochSchedule(network, loss, Dataset([]), affine_start_epoch=start)
    seen: list[tuple[int, int]] = []
    engine = Engine(lambda engine, batch: seen.append((loss.epoch, int(network.affine_gate))))
    schedule.attach(engine)
    engine.run([0], max_epochs=3)
    assert seen == list(enumerate(gates))


def test_an_epoch_draws_the_same_augmentation_whatever_came_before(tiny_network: Build) -> None:
    def draws(epochs: list[int]) -> torch.Tensor:
        network = tiny_network((16, 16))
        noise = Compose([RandGaussianNoised("image", prob=1.0)])
        dataset = Dataset([{"image": torch.zeros(1, 8, 8)}], noise)
        schedule = EpochSchedule(network, AtlasISTNLoss(network), dataset, seed=3)
        for epoch in epochs:
            engine = Engine(lambda engine, batch: None)
            engine.state.epoch = epoch
            schedule(engine)
            drawn = torch.as_tensor(dataset[0]["image"])
        return drawn

    assert torch.equal(draws([1, 2, 3]), draws([3]))
    assert not torch.equal(draws([2]), draws([3]))
