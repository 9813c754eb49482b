# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The letter B generator: what the files hold, that they repeat, and what happens in folders that are in use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from PIL import Image
from skimage.measure import euler_number, label

from atlas_istn.data.letter_b import generate_letter_b
from atlas_istn.errors import InputError
from support import DATA

COUNTS = {"training": 12, "validation": 3, "test": 4, "test_corrupt": 8}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return generate_letter_b(tmp_path_factory.mktemp("letter_b"), *COUNTS.values())


def read(dataset: Path, list_name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    cases = load_decathlon_datalist(str(dataset), data_list_key=list_name)
    return [(np.asarray(Image.open(case["image"])), np.asarray(Image.open(case["label"]))) for case in cases]


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize(("list_name", "count"), COUNTS.items())
def test_every_list_holds_8_bit_images_and_letters_with_two_holes(dataset, list_name, count):
    cases = read(dataset, list_name)
    assert len(cases) == count
    for image, letter in cases:
        assert image.dtype == letter.dtype == np.uint8
        assert image.shape == letter.shape == (128, 128)
        assert set(np.unique(letter)) == {0, 255}
        for connectivity in (1, 2):  # the answer must not hang on the convention
            assert label(letter > 0, connectivity=connectivity).max() == 1
            assert euler_number(letter > 0, connectivity=connectivity) == 1 - 2


def test_folder_holds_the_listed_files_and_no_others(dataset):
    description = json.loads(dataset.read_text())
    listed = {Path(path) for name in COUNTS for case in description[name] for path in case.values()}
    assert {Path(f) for f in content(dataset.parent)} == listed | {Path("dataset.json")}
    assert (description["numTraining"], description["numTest"]) == (COUNTS["training"], COUNTS["test"])


def test_cases_differ(dataset):
    letters = [letter.tobytes() for name in COUNTS for _, letter in read(dataset, name)]
    assert len(set(letters)) == sum(COUNTS.values())


def test_clean_images_are_two_grey_levels_under_noise(dataset):
    cases = read(dataset, "training")
    # Mean over 12 x 2000 pixels of the letter with deviation 25.5: standard error 0.17, four of them are 0.7.
    for value, level in ((0, 100), (255, 150)):
        pixels = np.concatenate([image[letter == value] for image, letter in cases]).astype(float)
        assert pixels.mean() == pytest.approx(level, abs=0.7)
        assert pixels.std() == pytest.approx(25.5, abs=0.5)


def test_corrupted_images_have_discs_added_and_erased(dataset):
    def changed_pixels(list_name: str) -> tuple[float, float]:
        """Mean rise of the background and mean fall of the letter against the two grey levels of a clean image."""
        cases = read(dataset, list_name)
        background = np.concatenate([image[letter == 0] for image, letter in cases])
        foreground = np.concatenate([image[letter > 0] for image, letter in cases])
        return background.mean() - 100, 150 - foreground.mean()

    # Discs cover about a twentieth of the image, so the means move by about 2.5 of the 50 grey levels between them.
    assert min(changed_pixels("test_corrupt")) > 1
    assert max(np.abs(changed_pixels("test"))) < 0.7


def test_a_case_depends_on_seed_list_and_index_alone(dataset, tmp_path):
    few = generate_letter_b(tmp_path / "few", num_training=2, num_validation=1, num_test=0, num_corrupt=3)
    other_seed = generate_letter_b(
        tmp_path / "seed", num_training=2, num_validation=0, num_test=0, num_corrupt=0, seed=1
    )
    pictures = {f: c for f, c in content(few.parent).items() if f != "dataset.json"}
    assert len(pictures) == 12
    assert pictures.items() <= content(dataset.parent).items()
    assert not np.array_equal(read(few, "training")[0][1], read(other_seed, "training")[0][1])


def test_size_scales_the_letter(tmp_path):
    small, large = (read(generate_letter_b(tmp_path / str(n), 3, 0, 0, 0, size=n), "training") for n in (64, 128))
    for (image, letter), (_, reference) in zip(small, large, strict=True):
        assert image.shape == (64, 64)
        # The same random numbers draw the same shape, but the B-spline's control points sit on the corner pixels,
        # which lie one reference pixel further in on the coarse grid; the stroke is four to five coarse pixels wide.
        assert 4 * (letter > 0).sum() == pytest.approx((reference > 0).sum(), rel=0.05)


def test_complete_set_is_left_alone_and_unfinished_set_is_completed(tmp_path):
    generate_letter_b(tmp_path, 2, 1, 1, 1)
    first = content(tmp_path)
    times = {f: (tmp_path / f).stat().st_mtime_ns for f in first}
    generate_letter_b(tmp_path, 2, 1, 1, 1)
    assert {f: (tmp_path / f).stat().st_mtime_ns for f in first} == times

    for lost in ("dataset.json", "labelsTr/training_0002.png"):
        (tmp_path / lost).unlink()
        generate_letter_b(tmp_path, 2, 1, 1, 1)
        assert content(tmp_path) == first


def test_interrupted_run_leaves_no_dataset_json(tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("atlas_istn.data.letter_b._with_clutter", stop)
        with pytest.raises(KeyboardInterrupt):
            generate_letter_b(tmp_path, 2, 0, 0, 1)
    assert (tmp_path / "imagesTr" / "training_0001.png").exists()
    assert not (tmp_path / "dataset.json").exists()
    assert len(read(generate_letter_b(tmp_path, 2, 0, 0, 1), "test_corrupt")) == 1


@pytest.mark.parametrize("found", ['{"name": "Task04_Hippocampus", "training": []}', "[]", "not json"])
def test_folder_of_another_data_set_is_refused_and_kept(tmp_path, found):
    (tmp_path / "dataset.json").write_text(found)
    with pytest.raises(InputError, match="another data set"):
        generate_letter_b(tmp_path, 1, 0, 0, 0)
    assert content(tmp_path) == {"dataset.json": found.encode()}


@pytest.mark.parametrize("change", [{"seed": 1}, {"size": 64}, {"num_training": 2}])
def test_other_parameters_are_refused_in_a_filled_folder(tmp_path, change):
    arguments = {"num_training": 1, "num_validation": 0, "num_test": 0, "num_corrupt": 0}
    generate_letter_b(tmp_path, **arguments)
    with pytest.raises(InputError, match="another data set"):
        generate_letter_b(tmp_path, **(arguments | change))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_training": -1}, "'training'.*at least 0, found -1"),
        ({"num_corrupt": 2.5}, "'test_corrupt'.*found 2.5"),
        ({"num_test": "ten"}, "'test'.*found 'ten'"),
        ({"num_validation": True}, "'validation'.*found True"),
        ({"size": 16}, "size.*at least 32, found 16"),
        ({"seed": -3}, "seed.*found -3"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        generate_letter_b(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match=r"taken.*choose a writable folder"):
        generate_letter_b(tmp_path / "taken", 1, 0, 0, 0)


def test_letters_resemble_those_of_the_paper(tmp_path):
    if not (DATA / "letter_b" / "dataset.json").exists():
        pytest.skip(f"no letter B set of the paper in {DATA}; set ATLAS_ISTN_DATA")
    ours = read(generate_letter_b(tmp_path, 150, 0, 0, 0), "training")
    theirs = read(DATA / "letter_b" / "dataset.json", "training")[:150]

    def statistics(cases: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Area, centre and extent of each letter, [cases, 5]."""
        places = [np.argwhere(letter > 0) for _, letter in cases]
        return np.array([[len(p), *p.mean(axis=0), *np.ptp(p, axis=0)] for p in places])

    a, b = statistics(ours), statistics(theirs)
    spread = b.std(axis=0)
    # Two samples of 150: the standard error is 0.12 spreads for the difference of means and 8 % for the ratio of
    # spreads; four of them.
    np.testing.assert_allclose((a.mean(axis=0) - b.mean(axis=0)) / spread, 0, atol=0.5)
    np.testing.assert_allclose(a.std(axis=0) / spread, 1, atol=0.33)
