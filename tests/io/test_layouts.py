# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Which image is found for which label, in the layouts of public data sets. The files are empty."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atlas_istn.io.cases import find_cases
from atlas_istn.io.channels import files_of
from atlas_istn.io.layouts import labelled_images
from atlas_istn.io.sources import find_sources

LAYOUTS = {
    "ACDC": {
        "training/p1/p1_frame01.nii.gz": "training/p1/p1_frame01_gt.nii.gz",
        "training/p1/p1_frame12.nii.gz": "training/p1/p1_frame12_gt.nii.gz",
        "testing/p2/p2_frame01.nii.gz": "testing/p2/p2_frame01_gt.nii.gz",
        "testing/p2/p2_4d.nii.gz": None,
    },
    "KiTS": {f"case_{n}/imaging.nii.gz": f"case_{n}/segmentation.nii.gz" for n in range(3)},
    "LiTS": {f"volume-{n}.nii": f"segmentation-{n}.nii" for n in (1, 2, 12)},
    "BTCV": {f"imagesTr/img000{n}.nii.gz": f"labelsTr/label000{n}.nii.gz" for n in (1, 2)},
    "MM-WHS": {f"ct_train_{n}_image.nii.gz": f"ct_train_{n}_label.nii.gz" for n in (1, 2)},
    "PROMISE12": {f"Case0{n}.mha": f"Case0{n}_segmentation.mha" for n in (1, 2)},
    "HC18": {"001_HC.png": "001_HC_Annotation.png", "001_2HC.png": "001_2HC_Annotation.png"},
    "nnU-Net": {"imagesTr/a_0000.png": "labelsTr/a.png", "imagesTr/b_0000.png": "labelsTr/b.png"},
    "splits": {"train/images/1.png": "train/masks/1.png", "val/images/2.png": "val/masks/2.png"},
    "endings": {"images/a.NII.GZ": "labels/a-seg.nii", "images/b 1.nrrd": "labels/b 1.nrrd", "images/c.nii": None},
    "BIDS": {f"sub-{n}/anat/sub-{n}_T1w.nii.gz": f"derivatives/x/sub-{n}/anat/sub-{n}_dseg.nii.gz" for n in (1, 2)},
    "BIDS, side by side": {f"sub-{n}/anat/sub-{n}_T1w.nii.gz": f"sub-{n}/anat/sub-{n}_dseg.nii.gz" for n in (1, 2)},
}


def fill(folder: Path, *files: str | None) -> Path:
    for file in filter(None, files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_label_finds_its_image(name: str, tmp_path: Path) -> None:
    pairs = LAYOUTS[name]
    found = labelled_images(fill(tmp_path, *pairs, *pairs.values()))
    assert {str(case.image): case.label for case in found.cases} == {i: label for i, label in pairs.items() if label}
    without = [image for image, label in pairs.items() if not label]
    assert found.left == ({"images without a label": without} if without else {})


def test_groups_are_those_of_the_folders(tmp_path: Path) -> None:
    def groups(name: str) -> list[str]:
        pairs = LAYOUTS[name]
        return sorted(case.group for case in labelled_images(fill(tmp_path / name, *pairs, *pairs.values())).cases)

    assert groups("ACDC") == ["testing", "training", "training"]
    assert groups("splits") == ["train", "val"]
    assert groups("BTCV") == ["Tr", "Tr"]
    assert groups("KiTS") == ["", "", ""]


def test_channels_beside_their_label_are_one_image(tmp_path: Path) -> None:
    found = labelled_images(fill(tmp_path, "a/x_0000.mha", "a/x_0001.mha", "a/x_seg.mha"))
    assert [files_of(case.image) for case in found.cases] == [("a/x_0000.mha", "a/x_0001.mha")]
    assert found.cases[0].name == "x"


def test_what_cannot_be_told_is_left_out_until_files_are(tmp_path: Path) -> None:
    fill(tmp_path, "p1/t1.nii", "p1/t2.nii", "p1/seg.nii", "p2/t1.nii", "p2/t2.nii", "p2/seg.nii")
    found = labelled_images(tmp_path)
    assert not found.cases
    assert found.left == {"labels without an image": ["p1/seg.nii", "p2/seg.nii"]}
    found = labelled_images(tmp_path, ["t2"])
    assert [(case.image, case.name) for case in found.cases] == [("p1/t1.nii", "p1_t1"), ("p2/t1.nii", "p2_t1")]
    assert [case.image for case in labelled_images(tmp_path, ["t2", "p1/*"]).cases] == ["p2/t1.nii"]


def test_a_run_has_the_names_of_the_layout(tmp_path: Path) -> None:
    """Also in a list of one case, whose file alone would be called as all others are."""
    data = fill(tmp_path / "data", *LAYOUTS["KiTS"], *LAYOUTS["KiTS"].values())
    first, *_ = labelled_images(data).cases
    assert first.name == "case_0_imaging"
    lists = {"root": str(data), "test": [{"case": first.name, "image": first.image, "label": first.label}]}
    (tmp_path / "dataset.json").write_text(json.dumps(lists))
    (case,) = find_cases(str(data), "test", with_labels=True, data_list_file=str(tmp_path / "dataset.json"))
    assert case["case"] == first.name
    assert case["label"] == str(data / first.label)
    assert find_sources(data, "", [first.name])[first.name]["label"] == case["label"]


def test_the_name_in_a_list_is_made_safe(tmp_path: Path) -> None:
    fill(tmp_path, "a.nii", "b.nii")
    (tmp_path / "dataset.json").write_text(
        json.dumps({"test": [{"case": "../x y", "image": "a.nii"}, {"case": "", "image": "b.nii"}]})
    )
    assert [case["case"] for case in find_cases(str(tmp_path))] == ["b", "x_y"]
