# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The measurements across modalities: who is tested by whom, what counts as done, and how scores are joined."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest

from atlas_istn.io.cases import find_cases
from support import ROOT, write_nifti


@pytest.fixture(scope="module")
def modules() -> dict[str, ModuleType]:
    """The benchmarks are scripts that lie side by side, so their folder is on the path when they are imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return {
            name: importlib.import_module(name) for name in ("runs", "across.lists", "across.scores", "across.figures")
        }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """24 patients with a bSSFP and an LGE image each; in that of one the heart lies at a border."""
    lists: dict[str, list[dict[str, str]]] = {"bssfp": [], "lge": []}
    heart = np.zeros((9, 8, 5), np.uint8)
    heart[0:3, 4:6, 1:4] = 1
    for patient, (name, entries) in itertools.product(range(24), lists.items()):
        entry = {key: f"{key}s/patient{patient}_{name}.nii" for key in ("image", "label")}
        for path in entry.values():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            write_nifti(tmp_path / path, heart, np.diag([1.5, 1.5, 6.0, 1.0]))
        entries.append(entry)
    (tmp_path / "dataset.json").write_text(json.dumps({"name": "heart", **lists}))
    return tmp_path


def test_rotations_split_by_patient_and_test_everyone_once(
    modules: dict[str, ModuleType], data: Path, tmp_path: Path
) -> None:
    tested: list[str] = []
    for number in range(3):
        folder = modules["across.lists"].write_rotation(data, tmp_path / f"rotation_{number}", number)

        def patients(name: str, folder: Path = folder) -> set[str]:
            return {case["case"].partition("_")[0] for case in find_cases(str(folder), name, True)}

        parts = [patients(f"lge{part}") for part in ("", "_validation", "_test")]
        assert [len(part) for part in parts] == [15, 4, 5]
        assert len(set.union(*parts)) == 24
        assert parts == [patients(f"bssfp{part}") for part in ("", "_validation", "_test")]
        chosen = patients("lge_similarity"), patients("lge_similarity_validation")
        assert set.union(*chosen) == parts[1]
        assert not set.intersection(*chosen)
        assert patients("bssfp_ten") < parts[0]
        tested += parts[2]
    assert len(set(tested)) == 15


def test_a_true_crop_has_the_heart_in_the_middle_and_all_of_the_image(
    modules: dict[str, ModuleType], data: Path, tmp_path: Path
) -> None:
    lists = modules["across.lists"]
    folder = lists.write_rotation(data, tmp_path / "rotation", 0)
    cropped = lists.write_true_crop(folder, tmp_path / "crop")
    case = find_cases(str(cropped), "lge_test", with_labels=True)[0]
    label = np.asarray(nib.load(case["label"]).dataobj)
    places = np.argwhere(label > 0)
    np.testing.assert_allclose((places.min(axis=0) + places.max(axis=0)) / 2, (np.array(label.shape) - 1) / 2)
    assert label.sum() == 3 * 2 * 3
    assert all(size >= before for size, before in zip(label.shape, (9, 8, 5), strict=True))


def test_a_command_runs_once_and_attempts_that_failed_count(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    runner = modules["runs"].Runner(tmp_path)
    burn = "import pathlib, sys, time\nwhile time.process_time() < 0.3: pass\n"
    fails_once = (
        f"{burn}path = pathlib.Path({str(tmp_path / 'there')!r})\nif not path.exists():\n path.touch()\n sys.exit(1)"
    )
    with pytest.raises(SystemExit, match=r"failed, see .*work\.log"):
        runner.execute("work", [sys.executable, "-c", fails_once])
    seconds = runner.execute("work", [sys.executable, "-c", fails_once])
    assert seconds > 0.55
    assert runner.execute("work", ["no such command"]) == seconds


def test_scores_are_of_targets_and_their_atlases(modules: dict[str, ModuleType]) -> None:
    scores, lists = modules["across.scores"], modules["across.lists"]
    rows = [
        {"case": f"{target}__{atlas}", "label": label, "dice": dice + 0.1 * (label == "myocardium"), "hd": 3.0}
        for target, atlas, dice in (("a", "x", 0.2), ("a", "y", 0.6), ("b", "x", 0.5))
        for label in lists.LABELS.values()
    ]
    single = scores.Method("consistent", lists.DIRECTIONS[0], rows)
    assert scores.by_target(single.values("myocardium")) == pytest.approx({"a": 0.5, "b": 0.6})
    assert single.values(scores.MEAN)["a__x"] == pytest.approx(0.2 + 0.1 / 3)
    assert scores.mean_text({"a__x": 0.2, "a__y": 0.4, "b__x": 0.5}) == "0.400"  # of few targets no interval
    values = {f"{target}__{atlas}": 0.1 * target for target in range(6) for atlas in "xy"}
    shifted = {case: value - 0.25 for case, value in values.items() if not case.startswith("5")}
    assert scores.difference(values, shifted) == "+0.250 (+0.250 to +0.250), n = 5"


def test_patches_are_drawn_evenly_over_the_dice(modules: dict[str, ModuleType]) -> None:
    """One patch in a hundred is alike; drawn evenly, it counts as much as the others together."""
    values = [(0.05, -3.0)] * 99 + [(0.95, -1.0)]
    rows = [
        {"target": "a", "structure": "myocardium", "dice": str(dice), "estimated": str(found)} for dice, found in values
    ]
    found = modules["across.figures"].spearman_by_target(rows, "myocardium", "estimated")
    assert found == pytest.approx({"a": 1.0})
