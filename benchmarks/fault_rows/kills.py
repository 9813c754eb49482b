# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Trainings that are killed before or after a change of the disk, and resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from atlas_istn.data.letter_b import generate_letter_b

from .row import Row, Work
from .runs import ROOT

__all__ = ["KIND", "tried"]

KIND = "kill points"
EVERY = 7  # odd: before and after the calls
SMALL = {
    "bundle_root": str(ROOT / "bundle"),
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
    "segmentation_loss": {"_target_": "atlas_istn.registration.similarity.squared_error", "_mode_": "callable"},
    "stn#channels": [4, 8],
    "batch_size": 2,
    "refine_iterations": 2,
    "max_epochs": 2,
    "val_interval": 1,
    "device": "cpu",
    "learning_rate": 0.01,
    "atlas_rate": 0.2,
}


def tried(folder: Path) -> list[tuple[Row, list[str]]]:
    """Every seventh point, as `tests/training/kill_points.py` finds them, each with what is not as expected."""
    generate_letter_b(folder / "letters", num_training=3, num_validation=2, num_test=1, num_corrupt=1, size=64)
    script = ROOT / "tests" / "training" / "kill_points.py"
    settings = [f"{name}={json.dumps(value)}" for name, value in SMALL.items()]
    command = [sys.executable, str(script), str(folder / "letters"), str(folder / "runs"), str(EVERY), *settings]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    expected = ("the resumed model is that of an uninterrupted training, bit for bit",)
    if run.returncode:
        return [(Row(KIND, "all", _nothing, 0, expected), [" ".join(run.stderr.split())[-500:]])]
    found = json.loads(run.stdout)
    misses: list[list[str]] = [[fault] for fault in found["faults"]] + [[]] * found["tried"]
    return [(Row(KIND, f"point {number}", _nothing, 0, expected), miss) for number, miss in enumerate(misses, start=1)]


def _nothing(folder: Path) -> Work:
    raise NotImplementedError(f"{folder}: kill points are tried together")
