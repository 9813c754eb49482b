# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Which cases are found, and what is said when none are. The files are empty: their content is not looked at."""

from __future__ import annotations

import json

import pytest

from atlas_istn.errors import InputError
from atlas_istn.io.cases import find_cases


@pytest.fixture
def dataset(tmp_path):
    """An MSD layout with lists of both kinds of entry; one file of the list 'broken' is missing."""
    content = {
        "name": "something",
        "labels": {"0": "background"},
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in "ba"],
        "test": ["./imagesTs/c.nii.gz"],
        "broken": [{"image": "./imagesTr/a.nii.gz"}, *({"image": f"./gone/{i}.nii.gz"} for i in range(5))],
        "odd": [{"image": ["./imagesTr/a.nii.gz", "./imagesTr/b.nii.gz"]}],
        "empty": [],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    for name in ("imagesTr/a", "imagesTr/b", "labelsTr/a", "labelsTr/b", "imagesTs/c"):
        path = tmp_path / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def test_list_with_labels_is_sorted_by_case(dataset):
    cases = find_cases(str(dataset), "training", with_labels=True)
    assert cases == [
        {
            "case": name,
            "image": str(dataset / "imagesTr" / f"{name}.nii.gz"),
            "label": str(dataset / "labelsTr" / f"{name}.nii.gz"),
        }
        for name in "ab"
    ]


def test_labels_are_left_out_unless_asked_for(dataset):
    assert [sorted(case) for case in find_cases(str(dataset), "training")] == [["case", "image"]] * 2


def test_entries_may_be_strings(dataset):
    assert find_cases(str(dataset)) == [{"case": "c", "image": str(dataset / "imagesTs" / "c.nii.gz")}]


def test_unknown_list_names_those_that_exist(dataset):
    with pytest.raises(InputError, match=r"list 'validation' does not exist.*'training' \(2\), 'test' \(1\)"):
        find_cases(str(dataset), "validation")


def test_empty_list(dataset):
    with pytest.raises(InputError, match="list 'empty' is empty"):
        find_cases(str(dataset), "empty")


def test_missing_files_are_counted_and_the_first_are_named(dataset):
    with pytest.raises(InputError, match=r"5 files of the list 'broken' do not exist: .*0\.nii\.gz.*2\.nii\.gz, …"):
        find_cases(str(dataset), "broken")


@pytest.mark.parametrize(
    ("list_name", "with_labels", "key"), [("test", True, "label"), ("broken", True, "label"), ("odd", False, "image")]
)
def test_entries_must_have_paths(dataset, list_name, with_labels, key):
    with pytest.raises(InputError, match=f"entry 1 of the list '{list_name}' has no path for '{key}'"):
        find_cases(str(dataset), list_name, with_labels)


@pytest.mark.parametrize("text", ["{", "[1, 2]"])
def test_damaged_dataset_json(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=r"dataset\.json"):
        find_cases(str(tmp_path))


def test_every_image_of_a_folder(tmp_path, write_series):
    for name in ("b.nii.gz", "a.nii", "c.PNG", "d.nrrd", "e.mha", "notes.txt", "._b.nii.gz", ".hidden.png"):
        (tmp_path / name).touch()
    write_series(tmp_path / "patient" / "series")
    (tmp_path / "patient" / "inner.nii.gz").touch()  # perhaps a label: only DICOM is looked for in depth

    cases = find_cases(str(tmp_path))

    assert [case["case"] for case in cases] == ["a", "b", "c", "d", "e", "series"]
    assert cases[-1]["image"] == str(tmp_path / "patient" / "series")


def test_folder_that_is_a_series_itself(tmp_path, write_series):
    write_series(tmp_path / "Study 1")
    assert find_cases(str(tmp_path / "Study 1")) == [{"case": "Study_1", "image": str(tmp_path / "Study 1")}]


def test_dicom_files_need_no_suffix(tmp_path, write_series):
    write_series(tmp_path / "series")
    for path in (tmp_path / "series").iterdir():
        path.rename(path.with_suffix(""))
    assert [case["case"] for case in find_cases(str(tmp_path))] == ["series"]


def test_names_are_safe_and_unique_where_case_does_not_count(tmp_path, write_series):
    for name in ("head.nii.gz", "head.nii", "head_2.png", "T1 (post).nii", "...nii"):
        (tmp_path / name).touch()
    write_series(tmp_path / "x" / "Head")
    names = [case["case"] for case in find_cases(str(tmp_path))]
    assert len({name.casefold() for name in names}) == 5  # "...nii" is hidden
    assert {"head", "head_2", "T1_post"} < set(names)


def test_labels_need_a_dataset_json(tmp_path):
    (tmp_path / "a.nii").touch()
    with pytest.raises(InputError, match=r"no dataset\.json"):
        find_cases(str(tmp_path), with_labels=True)


def test_empty_folder(tmp_path):
    with pytest.raises(InputError, match="no image found"):
        find_cases(str(tmp_path))


@pytest.mark.parametrize("name", ["missing", "file"])
def test_not_a_folder(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"{name}: no such folder"):
        find_cases(str(tmp_path / name))
