# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""A training whose locator finds the anatomy in no validation case: the model is there all the same."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow

from atlas_istn.data.letter_b import generate_letter_b
from support import ROOT

SETTINGS = {
    "device": "cpu",
    "localise": True,
    "locator_iterations": 1,  # of no use
    "spatial_size": [32, 32],
    "label_values": [0, 255],
    "max_epochs": 1,
    "batch_size": 2,
    "val_interval": 1,
    "final_atlas_rounds": 1,
    "refine_iterations": 2,
    "itn_member#filters": [4, 8, 8, 8],
    "stn#channels": [8, 16],
}


def test_a_model_that_cannot_be_calibrated_is_complete_without_that(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    generate_letter_b(tmp_path / "data", num_training=2, num_validation=1, num_test=1, num_corrupt=1)
    hook, work = sys.excepthook, tmp_path / "work"  # the workflow replaces the hook
    paths = {"dataset_dir": str(tmp_path / "data"), "output_dir": str(work), "bundle_root": str(ROOT / "bundle")}
    flow = ConfigWorkflow(
        str(ROOT / "bundle" / "configs" / "train.yaml"), run_id="training", logging_file=False, **SETTINGS, **paths
    )
    flow.initialize()
    with caplog.at_level(logging.WARNING):
        flow.run()
    sys.excepthook = hook
    assert any("the model is not calibrated" in record.message for record in caplog.records)
    assert (work / "models" / "model.pt").is_file()
    assert (work / "configs" / "metadata.json").is_file()
    assert not (work / "models" / "quality.json").exists()
    summary = json.loads((work / "validation" / "native" / "summary.json").read_text(encoding="utf-8"))
    assert [failure["case"] for failure in summary["failures"]] == ["validation_0001"]
