# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Which pairs a data set has, and where their structures lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atlas_istn.errors import InputError
from atlas_istn.io.pairs import find_pairs, pair_name


def lists(folder: Path, **content: Any) -> str:
    (folder / "dataset.json").write_text(json.dumps(content))
    return str(folder)


def test_a_pair_is_named_by_its_fixed_and_its_moving_image() -> None:
    assert pair_name("imagesTr/a.nii.gz", "imagesTr/b.nii.gz") == "a__b"


def test_labels_are_those_of_the_pair_of_the_lists_or_beside_the_images(tmp_path: Path) -> None:
    folder = lists(
        tmp_path,
        training=[{"image": "./imagesTr/b.nii.gz", "label": "./segmentations/b.nii.gz"}],
        pairs=[{"fixed": "imagesTr/a.nii.gz", "moving": "imagesTr/b.nii.gz", "fixed_label": "mine.nii.gz"}],
        others=[{"fixed": "imagesTr/c.nii.gz", "moving": "imagesTr/a.nii.gz"}],
    )
    (pair,) = find_pairs(folder, "pairs")
    assert pair["case"] == "a__b"
    assert pair["fixed_structure"] == str(tmp_path / "mine.nii.gz")
    assert pair["moving_structure"] == str(tmp_path / "segmentations/b.nii.gz")
    (pair,) = find_pairs(folder, "others", structures_dir="maps", landmarks_dir="points")
    assert pair["fixed_structure"] == str(tmp_path / "maps/c.nii.gz")
    assert pair["moving_points"] == str(tmp_path / "points/a.csv")
    assert find_pairs(folder, "others")[0]["moving_structure"] == str(tmp_path / "labelsTr/a.nii.gz")
    assert "moving_structure" not in find_pairs(folder, "others", with_structures=False)[0]


@pytest.mark.parametrize(
    ("image", "label"),
    [("a.nii.gz", "labels/a.nii.gz"), ("scans/a.nii.gz", "labels/a.nii.gz"), ("imagesTr/b", "labelsTr/b.nii.gz")],
)
def test_no_image_is_its_own_label(tmp_path: Path, image: str, label: str) -> None:
    """Wherever it lies; that of a folder with a DICOM series is a file."""
    (tmp_path / "imagesTr/b").mkdir(parents=True)
    (pair,) = find_pairs(lists(tmp_path, pairs=[{"fixed": image, "moving": "imagesTr/c.nii.gz"}]), "pairs")
    assert pair["fixed_structure"] == str(tmp_path / label)


def test_points_are_found_in_each_format(tmp_path: Path) -> None:
    folder = lists(tmp_path, pairs=[{"fixed": "i/a.nii.gz", "moving": "i/b.png"}])
    for name in ("a.mrk.json", "b.fcsv"):
        (tmp_path / name).touch()
    (pair,) = find_pairs(folder, "pairs", landmarks_dir=".")
    assert (pair["fixed_points"], pair["moving_points"]) == (str(tmp_path / "a.mrk.json"), str(tmp_path / "b.fcsv"))


def test_drawn_pairs_differ_and_repeat_with_the_seed(tmp_path: Path) -> None:
    folder = lists(tmp_path, training=[{"image": f"{name}.nii.gz"} for name in "abcd"])
    drawn = find_pairs(folder, "training", random_pairs=12)
    assert len({pair["case"] for pair in drawn}) == 12
    assert all(pair["fixed"] != pair["moving"] for pair in drawn)
    some = [find_pairs(folder, "training", random_pairs=5, seed=seed) for seed in (1, 1, 2)]
    assert some[0] == some[1] != some[2]
    with pytest.raises(InputError, match=r"at most 12 pairs.* found 13"):
        find_pairs(folder, "training", random_pairs=13)


def test_pairs_of_two_modalities_are_of_different_patients(tmp_path: Path) -> None:
    names = {kind: [f"patient{number}_{kind}" for number in (1, 2, 3)] for kind in ("bssfp", "lge")}
    folder = lists(tmp_path, **{kind: [{"image": f"{name}.nii.gz"} for name in found] for kind, found in names.items()})
    drawn = find_pairs(folder, "lge", random_pairs=6, moving_list="bssfp")
    assert {pair["case"] for pair in drawn} == {
        f"patient{one}_lge__patient{other}_bssfp" for one in (1, 2, 3) for other in (1, 2, 3) if one != other
    }
    with pytest.raises(InputError, match=r"at most 6 pairs"):
        find_pairs(folder, "lge", random_pairs=7, moving_list="bssfp")


def test_equal_pairs_are_counted(tmp_path: Path) -> None:
    entry = {"fixed": "a.png", "moving": "b.png"}
    names = [pair["case"] for pair in find_pairs(lists(tmp_path, pairs=[entry, entry]), "pairs")]
    assert names == ["a__b", "a__b_2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pairs": [{"fixed": "a.png"}]}, "entry 1 of the list 'pairs' is no pair"),
        ({"pairs": ["a.png"]}, "set random_pairs to draw some"),
        ({"training": []}, r"the list 'pairs' does not exist. The lists there: 'training' \(0\)"),
    ],
)
def test_what_is_no_list_of_pairs_is_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_pairs(lists(tmp_path, **content), "pairs")


def test_a_folder_without_lists_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset\.json: no such file"):
        find_pairs(str(tmp_path), "pairs")
