# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Two channels in two files, letters and their edges: from the plan to a report."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from PIL import Image
from scipy.ndimage import gaussian_gradient_magnitude

from atlas_istn.data.letter_b import generate_letter_b
from atlas_istn.io.results import find_case_folders, read_case_report
from atlas_istn.pictures.figure import draw_results
from atlas_istn.plan import plan
from atlas_istn.report import write_report
from support import ROOT

QUICK = {"spatial_size": [32, 32], "spacing": [4.0, 4.0], "refine_iterations": 3, "max_epochs": 1, "batch_size": 2}


def run(config: Path, run_id: str, *more: Path, **settings: object) -> None:
    texts = {key: str(value) for key, value in {**settings, "device": "cpu"}.items()}
    flow = ConfigWorkflow([str(path) for path in (config, *more)], run_id=run_id, logging_file=False, **texts)
    flow.initialize()
    flow.run()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("channels")
    hook = sys.excepthook  # the workflows replace it
    data = generate_letter_b(folder / "data", num_training=4, num_validation=2, num_test=2, num_corrupt=1).parent
    for path in sorted(data.glob("images*/*.png")):
        pixels = np.asarray(Image.open(path)).astype(float)
        edges = gaussian_gradient_magnitude(pixels, 1.0)
        Image.fromarray((255 * edges / edges.max()).astype(np.uint8)).save(path.with_stem(f"{path.stem}_0001"))
        path.rename(path.with_stem(f"{path.stem}_0000"))
    plan(str(data), str(folder / "work"), labels="letter=255", bundle_dir=str(ROOT / "bundle"))
    config = folder / "work" / "configs" / "data.yaml"
    run(ROOT / "bundle" / "configs" / "train.yaml", "training", config, **QUICK)
    sys.excepthook = hook
    return folder / "work"


def test_the_networks_see_both_channels(trained: Path) -> None:
    state = torch.load(trained / "models" / "model.pt", weights_only=True)
    assert state["atlas_image"].shape[:2] == (1, 2)
    assert not torch.equal(*state["atlas_image"][0])
    first = next(weight for name, weight in state.items() if name.startswith("itn.") and weight.ndim == 4)
    assert first.shape[1] == 2
    metadata = json.loads((trained / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["inputs"]["image"]["num_channels"] == 2


def test_lists_and_plain_folders_give_the_same_results_and_pictures_show_the_first_channel(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    data = trained.parent / "data"
    run(trained / "configs" / "evaluate.yaml", "evaluate", output_dir=tmp_path / "listed")
    settings = {"output_dir": tmp_path / "plain", "dataset_dir": data / "imagesTs"}
    run(trained / "configs" / "inference.yaml", "inference", **settings)
    names = [folder.name for folder in find_case_folders(tmp_path / "listed")]
    assert len(find_case_folders(tmp_path / "plain")) == len(list((data / "imagesTs").iterdir())) / 2
    assert len(names) == 2
    for name in names:
        first, second = ((tmp_path / run / name / f"{name}_seg.png").read_bytes() for run in ("listed", "plain"))
        assert first == second
        assert read_case_report(tmp_path / "listed" / name)["channels"] == 2
    for output, place in (("listed", data), ("plain", data / "imagesTs")):
        write_report(tmp_path / output, place)
        draw_results(place, tmp_path / output)
        assert (tmp_path / output / "figure.png").exists()
