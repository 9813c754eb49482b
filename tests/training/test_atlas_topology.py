# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import nn

from atlas_istn.errors import InputError
from atlas_istn.networks import AtlasISTN
from atlas_istn.pictures.atlas_repair import draw_repair
from atlas_istn.topology import Signature
from atlas_istn.training.atlas_topology import AtlasTopology, check_atlas, check_model
from atlas_istn.training.handlers import BestModel
from shape_runs import command

NAMES = {0: "background", 1: "core", 2: "shell"}


def shell(dim: int, closed: bool = True) -> np.ndarray:
    """Soft channels of a core in a shell, which may have an opening."""
    size = 17
    radius = np.linalg.norm(np.indices((size,) * dim) - (size - 1) / 2, axis=0)
    labelmap = np.where(radius <= 3.2, 1, np.where(radius <= 5.3, 2, 0))
    if not closed:
        labelmap[(*[8] * (dim - 1), slice(11, None))] = 0
    channels = np.stack([labelmap == label for label in range(3)]).astype(np.float32)
    return gaussian_filter(channels, (0, *[0.5] * dim))


def signature(channels: np.ndarray) -> Signature:
    return Signature.of(channels.argmax(axis=0), 3)


def save(path: Path, channels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"atlas_labels": torch.from_numpy(channels)[None], "weight": torch.ones(2)}, path)
    return path


def test_an_atlas_is_repaired_by_few_voxels_and_its_channels_still_sum_to_one(dim: int) -> None:
    labels = shell(dim, closed=False)
    check = check_atlas(labels, signature(shell(dim)))
    assert check.defects_before > 0
    assert check.defects_after == 0
    assert check.after == signature(shell(dim)) == signature(check.repaired)
    assert 0 < check.changed.sum() <= 3
    np.testing.assert_allclose(check.repaired.sum(axis=0), labels.sum(axis=0), atol=1e-6)
    assert ((check.repaired != labels).any(axis=0) == check.changed).all()


def test_a_right_atlas_stays_bit_for_bit(dim: int) -> None:
    labels = shell(dim)
    check = check_atlas(labels, signature(labels))
    assert check.repaired is labels
    report = check.report(NAMES)
    assert (report["defects"], report["voxels_changed"], report["defects_after_repair"]) == (0, 0, 0)
    assert report["atlas"]["shapes"]["shell"] == ([1, 1, 0] if dim == 2 else [1, 0, 1])
    assert report["contacts_missing"] == report["contacts_surplus"] == []


def test_contacts_and_overlaps_are_reported() -> None:
    labels = shell(2)
    labels[1:, 8, 8] = 0.8, 0.7  # more than a half of both: they overlap there
    # Core and shell shall not touch and yet be one piece: that cannot be.
    impossible = signature(labels).declare({"adjacent": [], "1+2": [1, 0, 0]}, 3)
    report = check_atlas(labels, impossible).report(NAMES)
    assert report["contacts_surplus"] == ["core+shell"]
    assert report["overlapping_voxels"] == 1


def test_labels_that_shall_not_touch_are_parted(dim: int) -> None:
    labels = shell(dim)
    check = check_atlas(labels, signature(labels).declare({"adjacent": []}, 3))
    assert check.defects_before == 1
    assert check.defects_after == 0
    assert not check.after.adjacent
    assert check.report(NAMES)["contacts_surplus"] == []
    # A layer of background around the core, no thicker than it must be.
    assert check.changed.sum() <= (labels.argmax(axis=0) == 1).sum()


def run(path: Path, cases: list[np.ndarray], declared: dict | None = None, interval: int = 0, epochs: int = 1) -> dict:
    """The handler at the end of a training with the labels of these cases."""
    loader = [{"label": torch.from_numpy(np.stack(cases[i : i + 2]))} for i in range(0, len(cases), 2)]
    trainer = Engine(lambda engine, batch: None)
    network = AtlasISTN(nn.Identity(), None, cases[0].shape[1:], 3, in_channels=3)
    best = BestModel(network, str(path))
    best.weights = torch.load(path, weights_only=True)
    network.atlas_labels.copy_(best.weights["atlas_labels"])
    AtlasTopology(network, best, loader, declared, NAMES, interval).attach(trainer)
    trainer.run([0], max_epochs=epochs)
    return json.loads((path.parent / "atlas_topology.json").read_text())


def test_training_ends_with_the_topology_of_most_cases(tmp_path: Path) -> None:
    path = save(tmp_path / "models" / "model.pt", shell(2, closed=False))
    report = run(path, [shell(2), shell(2, closed=False), shell(2)])
    assert report["voxels_changed"] > 0
    assert report["defects_after_repair"] == 0
    state = torch.load(path, weights_only=True)
    assert signature(state["atlas_labels"][0].numpy()) == signature(shell(2))
    assert (state["weight"] == 1).all()
    assert Image.open(path.with_name("atlas_topology.png")).size[0] > 500


def test_the_picture_names_labels_and_slice(tmp_path: Path) -> None:
    check = check_atlas(shell(3, closed=False), signature(shell(3)))
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw_repair(check.labels, check.repaired, (1.0, 1.0, 1.0), tmp_path / "repair.svg", {1: "core"})
    text = (tmp_path / "repair.svg").read_text()
    assert ">core<" in text
    assert ">label 2<" in text
    index = int(check.changed.sum(axis=(0, 1)).argmax())
    assert f"axial slice {index + 1} of {check.changed.shape[2]}" in text


def test_a_right_atlas_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "model.pt", shell(2))
    before = torch.load(path, weights_only=True)
    assert run(path, [shell(2)])["defects"] == 0
    torch.testing.assert_close(torch.load(path, weights_only=True), before, rtol=0, atol=0)
    assert not path.with_name("atlas_topology.png").exists()


def test_without_a_majority_the_atlas_keeps_its_own_topology(tmp_path: Path) -> None:
    path = save(tmp_path / "model.pt", shell(2))
    report = run(path, [shell(2), shell(2, closed=False)])
    assert (report["defects"], report["voxels_changed"]) == (0, 0)


def test_a_declared_topology_wins_over_the_cases(tmp_path: Path) -> None:
    path = save(tmp_path / "model.pt", shell(2, closed=False))
    assert run(path, [shell(2)], {2: [1, 0, 0]})["defects"] == 0


def test_the_atlas_is_watched_during_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "model.pt", shell(2, closed=False))
    with caplog.at_level("INFO"):
        run(path, [shell(2)], interval=2, epochs=5)
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("epoch")]
    assert [line.partition(":")[0] for line in said] == ["epoch 2", "epoch 4"]
    assert "1 defects ({'core': [1, 0, 0], 'shell': [1, 0, 0]" in said[0]


@pytest.mark.parametrize("declared", [{1: [1, 0]}, {3: [1, 0, 0]}, {1: [1, 0, 1]}, {"adjacent": [[1, 7]]}])
def test_a_declaration_that_makes_no_sense_is_refused_before_the_training(tmp_path: Path, declared: dict) -> None:
    network = AtlasISTN(nn.Identity(), None, (8, 8), 3, in_channels=3)
    with pytest.raises(InputError, match="topology: "):
        AtlasTopology(network, BestModel(network, str(tmp_path / "model.pt")), [], declared)


def test_without_a_model_there_is_nothing_to_check(tmp_path: Path) -> None:
    network = AtlasISTN(nn.Identity(), None, (8, 8), 3, in_channels=3)
    AtlasTopology(network, BestModel(network, str(tmp_path / "model.pt")), [])()
    assert not list(tmp_path.iterdir())


def test_the_command_reports_and_writes_a_repaired_model(tmp_path: Path) -> None:
    path = save(tmp_path / "model.pt", shell(3, closed=False))
    command = [sys.executable, "-m", "atlas_istn", "topology", str(path)]
    options = ["--target", "{2: [1, 0, 1], adjacent: [[1, 2]]}", "--output", str(tmp_path / "out.pt")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["atlas"]["shapes"]["2"] == [1, 0, 0]
    assert report["target"]["shapes"]["2"] == [1, 0, 1]
    repaired = torch.load(tmp_path / "out.pt", weights_only=True)["atlas_labels"][0].numpy()
    assert signature(repaired).shapes[(2,)] == (1, 0, 1)
    assert (tmp_path / "out.png").is_file()


def test_the_command_takes_labels_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "model.pt", shell(2))
    table = "{1: [1, 0, 0], 1+2: [1, 0, 0], adjacent: [[1, 2]]}"
    command(monkeypatch, "topology", path, "--target", table, "--output", tmp_path / "out.pt")
    assert (tmp_path / "out.pt").is_file()


def test_a_model_that_misses_its_target_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path / "model.pt", shell(2))
    with pytest.raises(InputError, match=r"found \d+ defects after it\. .*out\.pt is not written"):
        check_model(path, {1: [5, 0, 0]}, tmp_path / "out.pt")
    assert "beyond repair" in caplog.text
    assert json.loads(capsys.readouterr().out)["defects_after_repair"] > 0
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


def test_cavities_are_refused_in_2d(tmp_path: Path) -> None:
    path = save(tmp_path / "model.pt", shell(2))
    with pytest.raises(InputError, match=r"expected 2: \[components, holes, 0\] in 2D, found \[1, 0, 1\]"):
        check_model(path, {2: [1, 0, 1]})
    with pytest.raises(InputError, match=r"expected 2: \[components, holes, 0\] in 2D"):
        run(path, [shell(2)], {2: [1, 0, 1]})


@pytest.mark.parametrize("name", ["folder", "x" * 300 + ".pt"])
def test_where_nothing_can_be_written_nothing_is_printed(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    path = save(tmp_path / "model.pt", shell(2))
    with pytest.raises(InputError, match="cannot be written"):
        check_model(path, None, tmp_path / name)
    assert capsys.readouterr().out == ""


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pt: no such checkpoint"):
        check_model(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(InputError, match=r"text\.pt: not readable as a checkpoint"):
        check_model(tmp_path / "text.pt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"expected a model\.pt with an atlas"):
        check_model(tmp_path / "other.pt")
    path = save(tmp_path / "model.pt", shell(2))
    with pytest.raises(InputError, match="topology: expected a table"):
        check_model(path, "1")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected labels from 1 to 2"):
        check_model(path, {7: [1, 0, 0]})
