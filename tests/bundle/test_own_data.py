# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The README's way for a data set of one's own: three lines of configuration, training, inference."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow
from PIL import Image

from atlas_istn.data.letter_b import generate_letter_b
from support import ROOT

CONFIGS = ROOT / "bundle" / "configs"
MINE = """
spatial_size: [32, 32]
spacing: [4.0, 4.0]
label_names: {0: background, 1: letter}
label_values: [0, 255]
"""


def test_what_three_lines_train_inference_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the workflows replace it
    data = generate_letter_b(tmp_path / "data", num_training=4, num_validation=2, num_test=2, num_corrupt=1)
    mine = tmp_path / "mine.yaml"
    mine.write_text(MINE)
    common = {"dataset_dir": str(data.parent), "device": "$torch.device('cpu')"}
    runs = {
        "training": (["train.yaml"], {"output_dir": tmp_path / "out", "max_epochs": 1, "batch_size": 2}),
        "evaluate": (
            ["inference_own.yaml", "evaluate.yaml"],
            {"output_dir": tmp_path / "results", "ckpt_path": tmp_path / "out" / "models" / "model.pt"},
        ),
    }
    for run_id, (files, settings) in runs.items():
        paths = [*(str(CONFIGS / file) for file in files), str(mine)]
        texts = {key: str(value) for key, value in settings.items()}  # as the command line gives them
        flow = ConfigWorkflow(paths, run_id=run_id, logging_file=False, **common, **texts)
        flow.initialize()
        flow.run()
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert (summary["cases"], summary["failed"]) == (2, 0)
    segmentation = next((tmp_path / "results").glob("*/*_seg.png"))
    assert set(Image.open(segmentation).getdata()) <= {0, 255}
