# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from PIL import Image

from atlas_istn.errors import InputError
from atlas_istn.networks import AtlasISTN
from atlas_istn.pictures.atlas_evolution import TITLE, atlas_frame, draw_evolution
from atlas_istn.training.evolution import AtlasEvolution
from shape_runs import command


def train(network: AtlasISTN, folder: Path, start: int, end: int) -> None:
    """Epochs of nothing but the handler."""
    engine = Engine(lambda engine, batch: None)
    AtlasEvolution(network, str(folder)).attach(engine)
    if start:
        engine.load_state_dict({"epoch_length": 1, "max_epochs": end, "iteration": start})
    engine.run([0], max_epochs=end)


def frames(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "atlas_evolution").iterdir())


def test_a_frame_per_epoch_over_interruptions(tmp_path: Path, tiny_network: Callable[..., AtlasISTN], dim: int) -> None:
    network = tiny_network((20, 16, 12)[:dim])
    train(network, tmp_path, 0, 3)
    train(network, tmp_path, 2, 5)  # resumed from the checkpoint of epoch 2
    expected = [f"epoch_{epoch:04d}.png" for epoch in range(1, 6)]
    assert frames(tmp_path) == [*expected, "final.png"]
    with Image.open(tmp_path / "atlas_evolution.gif") as animation:
        # Pillow joins frames that are equal: these are, but for their titles.
        assert animation.n_frames == 6
        assert animation.is_animated
    with Image.open(tmp_path / "atlas_evolution.png") as sheet:
        frame = Image.open(tmp_path / "atlas_evolution" / "final.png").height
        assert sheet.height == 3 * (frame + frame // TITLE)
    train(network, tmp_path, 0, 1)  # a new run into the same folder leaves nothing of the old one
    assert frames(tmp_path) == ["epoch_0001.png", "final.png"]


def test_the_frame_shows_image_and_labels_upright() -> None:
    image = torch.zeros(40, 80)
    image[:, 60:] = 1.0  # bright where y is large
    labels = torch.stack([1 - image, image])
    frame = np.asarray(atlas_frame(image, labels, (1.0, 1.0))).astype(int)
    height, width = frame.shape[:2]
    assert frame[3 * height // 4 + 2 :, : width // 2 - 8].min() == 255  # below, as in a PNG
    assert frame[: 3 * height // 4 - 2, : width // 2 - 8].max() == 0
    red, green, blue = frame[-2, width // 2 + 8]
    assert blue > green > red  # the first label's colour
    volume = torch.zeros(40, 40, 40)
    volume[:, :, 30:] = 1.0  # superior
    frame = np.asarray(atlas_frame(volume, torch.stack([1 - volume, volume]), (1.0, 1.0, 2.0)))
    assert frame.shape[:2] == (320, 6 * 164)  # twice as high as wide, but for the axial planes
    coronal = frame[:, 164 + 25 : 164 + 65]  # beside the letters
    assert coronal[:78].min() == 255
    assert coronal[82:].max() == 0


def test_the_command_animates_a_run_that_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "atlas_evolution").mkdir()
    (tmp_path / "atlas_evolution" / ".0123456789abcdef.part.epoch_0003.png").write_bytes(b"half a frame")
    for epoch in (1, 2):
        Image.new("RGB", (30, 20), (100 * epoch, 0, 0)).save(tmp_path / "atlas_evolution" / f"epoch_000{epoch}.png")
    command(monkeypatch, "atlas_evolution", tmp_path)
    with Image.open(tmp_path / "atlas_evolution.gif") as animation:
        assert animation.n_frames == 2
    assert (tmp_path / "atlas_evolution.png").is_file()


def test_epochs_are_numbered_without_zeros(tmp_path: Path) -> None:
    sheets = []
    for name in ("epoch_0007", "epoch_7", "epoch_8"):
        folder = tmp_path / name / "atlas_evolution"
        folder.mkdir(parents=True)
        Image.new("RGB", (200, 140)).save(folder / f"{name}.png")
        draw_evolution(folder.parent)
        sheets.append(np.asarray(Image.open(folder.parent / "atlas_evolution.png")))
    np.testing.assert_array_equal(sheets[0], sheets[1])
    assert (sheets[1] != sheets[2]).any()


@pytest.mark.parametrize("content", [b"junk", b"\x89PNG\r\n\x1a\n and no more"])
def test_a_file_that_is_no_picture_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "atlas_evolution").mkdir()
    (tmp_path / "atlas_evolution" / "epoch_0003.png").write_bytes(content)
    with pytest.raises(InputError, match=r"epoch_0003\.png: expected a picture of the atlas"):
        draw_evolution(tmp_path)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pictures of the atlas"):
        draw_evolution(tmp_path)
