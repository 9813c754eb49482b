# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

"""The trainer's handlers alone, and whole trainings of some seconds through the bundle's own configuration."""

from __future__ import annotations

import json
import math
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
from atlas_istn.training.checkpoint import TrainingCheckpoint
from atlas_istn.training.handlers import BestModel, EarlyStop, EpochSchedule, FiniteWeights
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
            "itn": {
                "_target_": "atlas_istn.networks.UNet",
                "spatial_dims": 2,
                "in_channels": 1,
                "out_channels": 2,
                "channels": [4, 8],
            },
            "itn_activation": None,
            "segmentation_loss": {
                "_target_": "atlas_istn.registration.similarity.squared_error",
                "_mode_": "callable",
            },
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

    for name in ("checkpoints/checkpoint_4.pt", "models/model.pt"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    best = torch.load(tmp_path / "parts" / "models" / "model.pt", weights_only=True)

    # The training did something: the atlas holds the ring with its hole, and the epochs are on file.
    atlas = best["atlas_labels"][0, 1]
    assert atlas[16, 16] < 0.4
    assert atlas[16, 22] > 0.6
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["checkpoint_4.pt"]
    assert list((tmp_path / "parts" / "tensorboard").iterdir())


def test_more_epochs_give_what_they_would_have_given_from_the_beginning(
    training: Callable[..., ConfigWorkflow], tmp_path: Path
) -> None:
    """The end of the shorter training, with its rebuilt atlas, leaves no trace in the longer one.

    But for the rates of its epochs, where the schedule looks to the end; that of this test does not.
    """
    steady = {"lr_scheduler": {"_target_": "torch.optim.lr_scheduler.ConstantLR", "optimizer": "@optimizer"}}
    training(tmp_path / "whole", max_epochs=4, **steady).run()
    training(tmp_path / "parts", max_epochs=2, **steady).run()
    training(tmp_path / "parts", max_epochs=4, resume=True, **steady).run()
    models = [(tmp_path / run / "models" / "model.pt").read_bytes() for run in RUNS]
    assert models[0] == models[1]


def test_the_learning_rate_is_a_cosine_of_the_training_as_long_as_it_is(
    training: Callable[..., ConfigWorkflow], tmp_path: Path
) -> None:
    def rates(max_epochs: int, **changes: Any) -> list[float]:
        """Of the epochs of a run."""
        workflow, found = training(tmp_path / "run", max_epochs=max_epochs, **changes), []
        optimizer = workflow.parser.get_parsed_content("optimizer")
        trainer = workflow.parser.get_parsed_content("train#trainer")
        trainer.add_event_handler(Events.EPOCH_STARTED, lambda: found.append(optimizer.param_groups[-1]["lr"]))
        workflow.run()
        return found

    def cosine(epochs: range, max_epochs: int) -> list[float]:
        return [0.01 * (1 + math.cos(math.pi * epoch / max_epochs)) / 2 for epoch in epochs]

    assert rates(2) == pytest.approx(cosine(range(2), 2))
    # Resumed with more epochs it is that of the longer training: at the end of the shorter one nothing was left of it.
    assert rates(4, resume=True) == pytest.approx(cosine(range(2, 4), 4))


def test_a_folder_with_a_training_is_refused_unless_told_otherwise(
    training: Callable[..., ConfigWorkflow], tmp_path: Path
) -> None:
    short = {"max_epochs": 1, "final_atlas_rounds": 0}
    training(tmp_path, **short).run()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def refusal(**changes: Any) -> str:
        with pytest.raises(InputError) as caught:
            run_to_input_error(training(tmp_path, **short | changes))
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        return str(caught.value)

    assert "a run has written into this folder already" in refusal()
    assert "at most one of them" in refusal(resume=True, overwrite=True)
    found = refusal(resume=True, seed=3, learning_rate=0.02, spacing=[1.0, 2.0], **{"itn#channels": [8, 8]})
    differing = [line.split(":")[0].strip() for line in found.splitlines()[1:-1]]
    assert differing == ["itn", "learning_rate", "seed", "spacing"]
    assert "learning_rate: 0.01, now 0.02" in found

    training(tmp_path, overwrite=True, seed=3, **short).run()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint_1.pt"]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    (tmp_path / "checkpoints" / "checkpoint_1.pt").unlink()
    with pytest.raises(InputError, match=r"model\.pt: a run has written .* there is no checkpoint to go on from"):
        run_to_input_error(training(tmp_path, resume=True, **short))


@pytest.mark.parametrize("rate", [1e20, 1e38])
def test_a_training_that_diverges_says_so_and_keeps_its_checkpoint(
    training: Callable[..., ConfigWorkflow], tmp_path: Path, rate: float
) -> None:
    with pytest.raises(InputError, match=r"epoch 1: .* not finite: the training has diverged"):
        run_to_input_error(training(tmp_path, learning_rate=rate))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint_0.pt"]
    assert not (tmp_path / "models" / "model.pt").exists()


def test_weights_that_are_not_finite_end_a_training(tiny_network: Build) -> None:
    network = tiny_network((16, 16))
    engine = Engine(lambda engine, batch: None)
    FiniteWeights(network).attach(engine)
    engine.run([0], max_epochs=1)
    name, weight = next(iter(network.named_parameters()))
    weight.data[0] = float("nan")
    with pytest.raises(InputError, match=rf"epoch 1: the weights {name} are not finite"):
        engine.run([0], max_epochs=1)


def run_to_input_error(workflow: ConfigWorkflow) -> None:
    """Run, and raise the user's mistake that engines and bundles may wrap into exceptions of their own."""
    try:
        workflow.run()
    except Exception as error:
        raise input_error_behind(error) or error from error


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


def test_a_run_that_has_stopped_early_does_not_go_on_when_resumed(tiny_network: Build, tmp_path: Path) -> None:
    scores = [0.5, 0.4, 0.3, 0.9]
    epochs = []
    for resume in (False, True):
        trainer, validator = validated(scores)
        trainer.state.device = torch.device("cpu")
        best = BestModel(tiny_network((16, 16)), str(tmp_path / "model.pt"))
        best.attach(validator)
        TrainingCheckpoint(str(tmp_path), {"best": best}, resume).attach(trainer)
        EarlyStop(best, patience=2).attach(trainer)
        trainer.run([0], max_epochs=4)
        epochs.append(trainer.state.epoch)
    assert epochs == [3, 3]


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
    resumed(scored(float("nan")))
    assert (torch.load(path, weights_only=True)["atlas_image"] == 1).all()
    assert (resumed.weights["atlas_image"] == 1).all()


def test_the_best_model_appears_whole_or_not_at_all(
    tiny_network: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = BestModel(tiny_network((16, 16)), str(tmp_path / "model.pt"))
    best(scored(0.5))
    before = (tmp_path / "model.pt").read_bytes()

    def interrupted(state: Any, file: Any) -> None:
        file.write(b"half a model")
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
