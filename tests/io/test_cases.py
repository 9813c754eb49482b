# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Which cases are found, and what is said when none are. The files are empty: their content is not looked at."""

from __future__ import annotations

import json

import pytest

from atlas_istn.errors import InputError
from atlas_istn.io.cases import find_cases
from atlas_istn.io.loading import read_volume
from atlas_istn.io.results import find_labelled_cases
from support import CASES


@pytest.fixture
def dataset(tmp_path):
    """An MSD layout with lists of both kinds of entry; one file of the list 'broken' is missing."""
    content = {
        "name": "something",
        "labels": {"0": "background"},
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in "ba"],
        "test": ["./imagesTs/c.nii.gz"],
        "broken": [{"image": "./imagesTr/a.nii.gz"}, *({"image": f"./gone/{i}.nii.gz"} for i in range(5))],
        "odd": [{"image": ["./imagesTr/a.nii.gz", 2]}],
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
    for name in (
        "b.nii.gz",
        "a.nii",
        "c.PNG",
        "d.nrrd",
        "e.mha",
        "f.mhd",
        "f.raw",
        "notes.txt",
        "._b.nii.gz",
        ".hidden.png",
    ):
        (tmp_path / name).touch()
    write_series(tmp_path / "patient" / "series")
    (tmp_path / "patient" / "inner.nii.gz").touch()  # perhaps a label: only DICOM is looked for in depth

    cases = find_cases(str(tmp_path))

    assert "f.raw" not in cases.unused  # the voxels of f.mhd
    assert [case["case"] for case in cases] == ["a", "b", "c", "d", "e", "f", "series"]
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


def test_links_have_names_of_their_own(tmp_path, write_series):
    """Targets may be named by hashes, or after patients."""
    store, data = tmp_path / "store", tmp_path / "data"
    data.mkdir()
    write_series(store / "Secret_Name")
    (store / "MD5E-s69702--0f34.nii.gz").touch()
    (data / "sub-01_T1w.nii.gz").symlink_to("../store/MD5E-s69702--0f34.nii.gz")
    (data / "sub-02").symlink_to("../store/Secret_Name")
    (data / "loop").symlink_to(data)
    cases = find_cases(str(data))
    assert [case["case"] for case in cases] == ["sub-01_T1w", "sub-02"]
    assert "store" not in str(cases)
    (tmp_path / "sub-03").symlink_to("store/Secret_Name")
    assert [case["case"] for case in find_cases(str(tmp_path / "sub-03"))] == ["sub-03"]


def test_a_link_that_leads_nowhere_is_a_case_that_fails(tmp_path):
    (tmp_path / "a.nii.gz").symlink_to("gone.nii.gz")
    (case,) = find_cases(str(tmp_path))
    with pytest.raises(InputError, match=r"a\.nii\.gz: the link leads nowhere"):
        read_volume(case["image"], 3)


def test_a_folder_named_by_a_dot_has_its_name(tmp_path, write_series, monkeypatch):
    write_series(tmp_path / "Study1")
    monkeypatch.chdir(tmp_path / "Study1")
    assert [case["case"] for case in find_cases(".")] == ["Study1"]


@pytest.mark.parametrize("name", ["atlas", "Atlas", "summary.csv", "metrics.csv", "summary.json"])
def test_names_that_a_run_needs_itself(tmp_path, name):
    (tmp_path / f"{name}.nii.gz").touch()
    assert [case["case"] for case in find_cases(str(tmp_path))] == [f"{name}_2"]


def test_names_are_short_enough_for_what_is_appended(tmp_path):
    for end in "ab":
        (tmp_path / f"{'x' * 200}{end}.nii.gz").touch()
    names = [case["case"] for case in find_cases(str(tmp_path))]
    assert len(set(names)) == 2
    assert max(map(len, names)) < 110


def test_what_is_not_used_is_told(tmp_path, write_series):
    write_series(tmp_path / "series")
    (tmp_path / "results" / "a").mkdir(parents=True)
    for path in ("a.nii", "notes.txt", "b.csv", "results/a/a_seg.nii.gz", ".hidden", "._a.nii", ".git"):
        (tmp_path / path).touch()
    assert find_cases(str(tmp_path)).unused == {
        "b.csv and 1 more": "no image of a known format",
        "results/a/a_seg.nii.gz": "image in a sub-folder, where only DICOM is looked for",
    }


@pytest.mark.parametrize("anonymous", [True, "true", "True"])
def test_numbers_in_place_of_names(tmp_path, anonymous):
    for name in ("Meier.nii", "Huber.nii", "Secret.txt", "Secret.csv"):
        (tmp_path / name).touch()
    cases = find_cases(str(tmp_path), anonymous=anonymous)
    assert [(case["case"], case["image"][-9:]) for case in cases] == [
        ("case_001", "Huber.nii"),
        ("case_002", "Meier.nii"),
    ]
    assert cases.anonymous
    assert cases.unused == {"1 in the folder": "no image of a known format"}
    assert not find_cases(str(tmp_path), anonymous="false").anonymous
    both = find_labelled_cases(tmp_path, "")
    assert [case["case"] for case in both] == ["Huber", "Meier", "case_001", "case_002"]


def test_lists_are_all_that_is_used(dataset):
    (dataset / "notes.txt").touch()
    assert find_cases(str(dataset)).unused == {}


def test_a_list_of_unreasonable_size_is_refused(tmp_path):
    with (tmp_path / "dataset.json").open("wb") as stream:
        stream.truncate(100 * 2**20)
    with pytest.raises(InputError, match="more than 64 MiB"):
        find_cases(str(tmp_path))
    (tmp_path / "dataset.json").write_text("[" * 200000)
    with pytest.raises(InputError, match="not readable as JSON"):
        find_cases(str(tmp_path))


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no folder {CASES}")
def test_the_name_atlas_is_taken():
    names = [case["case"] for case in find_cases(str(CASES / "10_case_named_atlas"))]
    assert names == ["a00_plain", "atlas_2"]
