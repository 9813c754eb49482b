# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The picture of a training."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from atlas_istn.errors import InputError
from atlas_istn.pictures.curves import draw_curves, read_curves
from atlas_istn.pictures.palette import RESULT_COLOURS


def log(folder: Path, suffix: str, values: dict[int, float]) -> None:
    with SummaryWriter(str(folder / "tensorboard"), filename_suffix=suffix) as writer:
        for epoch, value in values.items():
            writer.add_scalar("loss/a2s", value, epoch)
            writer.add_scalar("validation/refine_dice", 1 - value, epoch)


def test_a_resumed_training_is_one_curve(tmp_path: Path) -> None:
    log(tmp_path, ".first", {1: 0.5, 2: 0.4, 3: 0.35})
    log(tmp_path, ".second", {3: 0.25, 4: 0.125})
    curves = read_curves(tmp_path / "tensorboard")
    assert set(curves) == {"loss/a2s", "validation/refine_dice"}
    # TensorBoard keeps float32.
    assert curves["loss/a2s"] == pytest.approx({1: 0.5, 2: 0.4, 3: 0.25, 4: 0.125}, abs=1e-6)


def test_the_picture_shows_the_curves(tmp_path: Path) -> None:
    log(tmp_path, "", {1: 0.5, 2: 0.25})
    picture = np.asarray(Image.open(draw_curves(tmp_path)).convert("RGB")).astype(int)
    coloured = np.ptp(picture, axis=2) > 60  # frames, text and grid are grey
    halves = np.array_split(coloured, 2, axis=1)
    assert all(half.sum() > 100 for half in halves)


def test_the_legend_names_terms_and_results_in_the_colours_of_the_report(tmp_path: Path) -> None:
    log(tmp_path, "", {1: 0.5, 2: 0.25})
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        text = draw_curves(tmp_path, tmp_path / "curves.svg").read_text(encoding="utf-8")
    assert ">atlas to subject<" in text
    assert ">refined<" in text
    assert "refine_dice" not in text
    assert f"stroke: {RESULT_COLOURS['refine']}" in text


def test_another_kind_of_picture_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"c\.xyz: expected a name that ends in \.png or \.pdf or \.svg"):
        draw_curves(tmp_path, tmp_path / "c.xyz")


def test_a_folder_without_a_training_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no logged training found"):
        draw_curves(tmp_path)
