# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

"""Checkpoints, and trainings that are killed at each change of the disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

from atlas_istn.data.letter_b import generate_letter_b
from atlas_istn.errors import InputError
from atlas_istn.training.checkpoint import TrainingCheckpoint

SMALL = {
    "bundle_root": "bundle",
    "spatial_size": [32, 32],
    "spacing": [2.0, 2.0],
    "label_values": [0, 255],
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
    "refine_iterations": 2,
    "max_epochs": 2,
    "val_interval": 1,
    "device": "cpu",
    "learning_rate": 0.01,
    "atlas_rate": 0.2,
}


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
    with pytest.raises(InputError, match=r"checkpoint_1\.pt.*damaged"):
        checkpointing(tmp_path, resume=True)[0].run([0], max_epochs=2)


def test_a_checkpoint_that_does_not_fit_is_named(tmp_path: Path) -> None:
    checkpointing(tmp_path)[0].run([0], max_epochs=1)
    with pytest.raises(InputError, match=r"checkpoint_1\.pt is damaged or does not fit.*configuration that wrote it"):
        checkpointing(tmp_path, resume=True, width=4)[0].run([0], max_epochs=2)


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    engine, layer = checkpointing(tmp_path, resume=True)
    engine.run([0], max_epochs=2)
    assert (layer.weight == 2).all()


def test_a_flipped_bit_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    checkpointing(tmp_path, width=64)[0].run([0], max_epochs=1)
    path = tmp_path / "checkpoint_1.pt"
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(64).numpy().tobytes()) + 101] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint_1\.pt: damaged, its checksums do not agree"):
        checkpointing(tmp_path, resume=True, width=64)[0].run([0], max_epochs=2)


def test_a_data_set_that_has_grown_is_seen_whole(tmp_path: Path) -> None:
    checkpointing(tmp_path)[0].run([0], max_epochs=2)
    engine, _ = checkpointing(tmp_path, resume=True)
    seen: list[int] = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(engine.state.batch))
    engine.run([1, 2, 3], max_epochs=3)
    assert seen == [1, 2, 3]


def kill_points(folder: Path, step: int) -> dict[str, Any]:
    generate_letter_b(folder / "letters", num_training=3, num_validation=2, num_test=1, num_corrupt=1, size=64)
    script = Path(__file__).with_name("kill_points.py")
    settings = [f"{name}={json.dumps(value)}" for name, value in SMALL.items()]
    command = [sys.executable, str(script), str(folder / "letters"), str(folder / "runs"), str(step), *settings]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_a_killed_training_is_resumed_bit_for_bit_with_nothing_left_over(tmp_path: Path) -> None:
    found = kill_points(tmp_path, step=83)  # odd: before and after calls
    assert found["faults"] == []
    assert found["tried"] >= 3


@pytest.mark.slow
def test_a_training_killed_at_any_change_of_the_disk_is_resumed(tmp_path: Path) -> None:
    found = kill_points(tmp_path, step=1)
    assert found["faults"] == []
    assert found["tried"] >= 100
