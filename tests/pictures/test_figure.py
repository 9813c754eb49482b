# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What the picture shows is read off its artists, in pixels of the image."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from atlas_istn.errors import InputError
from atlas_istn.io.outputs import atlas_grid_affine, write_image, write_json, write_labelmap, write_transforms
from atlas_istn.pictures import figure as figures
from atlas_istn.pictures.figure import draw_results
from atlas_istn.spatial import Transform, affine_matrix

ANGLE = 0.3


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were drawn."""
    made: list[Figure] = []

    class Recorded(Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(figures, "Figure", Recorded)
    return made


def write_run(root: Path, labels: np.ndarray, affine: np.ndarray, suffix: str) -> None:
    """A data set of one case, and what inference writes: the label as every result, a map that rotates by ANGLE."""
    image = np.random.default_rng(0).integers(0, 99, labels.shape).astype(np.int16)
    dim = labels.ndim
    for folder in ("data", "out/case"):
        (root / folder).mkdir(parents=True)
    if suffix == ".png":
        Image.fromarray(image.T.astype(np.uint8)).save(root / "data" / "case.png")
    else:
        write_image(image, affine, root / "data" / f"case{suffix}")
    values = range(int(labels.max()) + 1)
    names = {f"part {value}": value for value in values[1:]}
    report = {"case": "case", "topology": {}, "labels": names, "loss_curve": [1.0], "iterations": 1}
    write_json(report, root / "out" / "case" / "case.json")
    write_labelmap(labels, affine, values, root / "data" / f"truth{suffix}")
    for name in ("itn", "one_pass", "seg"):
        write_labelmap(labels, affine, values, root / "out" / "case" / f"case_{name}{suffix}")
    entry = {"image": f"case{suffix}", "label": f"truth{suffix}"}
    (root / "data" / "dataset.json").write_text(json.dumps({"test": [entry]}))

    parameters = torch.zeros(1, 5 if dim == 2 else 9)
    parameters[0, 2 if dim == 2 else 5] = np.arctanh(ANGLE)  # the last rotation is that in the x-y plane
    matrix = affine_matrix(parameters, torch.ones(parameters.shape[1]))
    velocity = torch.zeros(1, dim, *[n // 2 for n in labels.shape])
    transform = Transform(velocity, matrix, labels.shape, (1.0,) * dim)
    grid = affine if dim == 3 else np.diag([-1.0, -1.0, 1.0, 1.0])
    write_transforms(transform, grid, lambda name: root / "out" / "case" / f"case_{name}.h5")
    atlas = atlas_grid_affine(labels.shape, (1.0,) * dim)
    write_image(labels.astype(np.float32), atlas, root / "out" / "atlas" / "atlas_image.nii.gz")
    channels = np.stack([labels == value for value in values], axis=-1).astype(np.float32)
    write_image(channels, atlas, root / "out" / "atlas" / "atlas_probabilities.nii.gz")


def extent(collection) -> list[float]:
    vertices = np.concatenate([path.vertices for path in collection.get_paths()])
    return [*vertices.min(axis=0), *vertices.max(axis=0)]


@pytest.fixture
def letter_run(tmp_path: Path) -> Path:
    labels = np.zeros((40, 30), dtype=int)
    labels[10:20, 5:25] = 1
    write_run(tmp_path, labels, np.diag([-1.0, -1.0, 1.0]), ".png")
    return tmp_path


def test_contours_lie_on_the_borders_of_the_labels(letter_run, drawn):
    draw_results(letter_run / "data", letter_run / "out", "test", letter_run / "figure.png", cases=3)
    panels = drawn[0].axes[5:10]
    assert [panel.get_title() for panel in panels] == ["case", "ITN", "1-pass", "refined", "deformed grid"]
    for panel in panels[1:4]:
        assert extent(panel.collections[0]) == [
            3.5,
            4.5,
            13.5,
            24.5,
        ]  # 0.4 of the width is shown beside it
    with Image.open(letter_run / "figure.png") as picture:
        assert picture.size == (1000, 455)  # 10 x (2 rows of 2.1 and a legend) inches at 100 dpi


def test_what_was_written_and_the_names_of_labels_are_said(letter_run, drawn, capsys):
    draw_results(letter_run / "data", letter_run / "out")
    assert capsys.readouterr().out == f"{letter_run / 'out' / 'figure.png'}: 1 cases\n"
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["part 1", "truth"]


@pytest.mark.parametrize(
    ("full", "titles"), [("itn", ["case", "ITN"]), ("one_pass", ["case", "1-pass", "deformed grid"])]
)
def test_a_run_without_refinement_is_shown_with_what_there_is(letter_run, drawn, full, titles):
    folder = letter_run / "out" / "case"
    (folder / "case_itn.png").unlink()
    (folder / "case_one_pass.png").unlink()
    report = json.loads((folder / "case.json").read_text())
    del report["iterations"]
    write_json(report, folder / "case.json")
    if full == "itn":
        shutil.rmtree(letter_run / "out" / "atlas")
        for file in folder.glob("*.h5"):
            file.unlink()
    draw_results(letter_run / "data", letter_run / "out")
    assert [axes.get_title() for axes in drawn[0].axes[-len(titles) :]] == titles
    assert len(drawn[0].axes) == len(titles) * (1 if full == "itn" else 2)


def test_the_grid_is_turned_as_the_atlas_is(letter_run, drawn):
    draw_results(letter_run / "data", letter_run / "out", "test", letter_run / "figure.png")
    for lines in drawn[0].axes[9].collections[:2]:
        line = max((path.vertices for path in lines.get_paths()), key=len)
        run, rise = line[-1] - line[0]
        angle = np.arctan2(rise, run) % (np.pi / 2)
        # The lines are straight and contours are interpolated linearly: exact but for the float32 of the transform.
        assert angle == pytest.approx(ANGLE, abs=1e-3)


def test_the_atlas_is_shown_before_and_after(letter_run, drawn):
    start = {"image": torch.zeros(1, 1, 40, 30), "labels": torch.full((1, 2, 40, 30), 0.25)}
    torch.save(start, letter_run / "initial.pt")
    draw_results(
        letter_run / "data",
        letter_run / "out",
        "test",
        letter_run / "figure.png",
        initial_atlas=letter_run / "initial.pt",
    )
    _, before, _, after, _ = drawn[0].axes[:5]
    assert np.unique(before.images[0].get_array()).tolist() == [0.25]
    assert after.images[0].get_array().sum() == 200


def test_a_volume_is_shown_in_the_slice_with_most_of_the_label(tmp_path, drawn):
    labels = np.zeros((20, 24, 12), dtype=int)
    labels[4:8, 6:9, 3:9] = 1
    labels[4:10, 6:14, 5] = 2
    flipped = np.diag([-1.0, 1.5, 3.0, 1.0])  # stored right to left: column 4 of 20 is shown as column 15
    write_run(tmp_path, labels, flipped, ".nii.gz")
    draw_results(tmp_path / "data", tmp_path / "out", "test", tmp_path / "figure.png", cases=1)
    panel = drawn[0].axes[8]
    # In RAS the columns 10 to 15 and the rows 6 to 13 are labelled, with 0.4 of that around them; anterior is on top.
    assert extent(panel.collections[1]) == [2.5, 3.5, 8.5, 11.5]
    assert panel.get_aspect() == pytest.approx(1.5)
    assert [text.get_text() for text in panel.texts] == list("RLAP")


def test_without_results_the_message_says_what_to_do(letter_run):
    with pytest.raises(InputError, match=r"found no results to draw\. Run inference first"):
        draw_results(letter_run / "data", letter_run / "elsewhere", "test", letter_run / "figure.png")


def test_a_picture_in_an_unknown_format_is_refused(letter_run):
    with pytest.raises(InputError, match=r"f\.xyz: expected a name that ends in \.png or \.pdf or \.svg"):
        draw_results(letter_run / "data", letter_run / "out", "test", letter_run / "f.xyz")


def test_a_missing_atlas_is_named(letter_run):
    (letter_run / "out" / "atlas" / "atlas_image.nii.gz").unlink()
    with pytest.raises(InputError, match="atlas cannot be read"):
        draw_results(letter_run / "data", letter_run / "out", "test", letter_run / "figure.png")
