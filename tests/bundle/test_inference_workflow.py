# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The workflows `inference` and `evaluate` of the bundle, run as a user runs them, on synthetic and on real images.

The synthetic model needs no training. Its ITN reads the class off the intensity, its STN is nearly the identity, and
its atlas is the same pair of ellipsoids that the images show, which refinement then moves into place.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import PydicomReader
from monai.transforms import LoadImage
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from PIL import Image
from scipy.spatial.transform import Rotation

from atlas_istn.errors import input_error_behind
from atlas_istn.evaluation.metrics import score_labelmap
from inference_runs import centred, ellipsoids, picture, save_model
from support import DATA, ROOT

CONFIGS = ROOT / "bundle" / "configs"
RESULTS = ("seg", "itn", "one_pass")

SIZE = (24, 32, 24)
SOLID = {
    "spatial_size": list(SIZE),
    "spacing": [1.0, 1.0, 1.0],
    "itn": "$torch.nn.Sequential(torch.nn.Conv3d(1, 3, 1), torch.nn.ReLU(), torch.nn.Conv3d(3, 3, 1))",
    "itn_activation": None,  # the ITN made by hand yields the labelmap itself
    "stn#channels": [8, 16],
    "refine_iterations": 30,
    "refine_weights": {"beta": 1.0, "gamma": 0.0, "lambda": 0.5},
    "refine_trust": None,  # the STN made by hand knows nothing that could take the ITN's place
    "device": "$torch.device('cpu')",
}
PLANE = {
    "spatial_size": [32, 32],
    "itn": "$torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(2, 2, 1))",
    "itn_activation": None,  # the ITN made by hand yields the labelmap itself
    "stn#channels": [8, 16],
    "refine_iterations": 80,  # from the far start of an STN that has learned nothing, with so large a λ
    "refine_weights": {"beta": 1.0, "gamma": 0.0, "lambda": 0.5},
    "device": "$torch.device('cpu')",
}


@pytest.fixture(autouse=True)
def _excepthook(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workflows replace it; pytest should find its own again."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def workflow(*files: str, **settings: Any) -> ConfigWorkflow:
    """An initialised workflow of bundle/configs/FILES with settings as on the command line."""
    run = {"inference.yaml": "inference", "evaluate.yaml": "evaluate"}
    run_id = [run[file] for file in files if file in run][-1]
    flow = ConfigWorkflow(
        config_file=[str(CONFIGS / file) for file in files], run_id=run_id, logging_file=False, **settings
    )
    flow.initialize()
    return flow


def infer(dataset_dir: Path, output_dir: Path, model: Path, *files: str, **settings: Any) -> Path:
    """Run a workflow, `inference` on its own unless files are given, and return the output folder."""
    paths = {"dataset_dir": str(dataset_dir), "output_dir": str(output_dir), "ckpt_path": str(model)}
    workflow(*(files or ("inference.yaml",)), **{**paths, **settings}).run()
    return output_dir


def mistake(*arguments: Any, **settings: Any) -> str:
    """The message with which a run ends."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 (MONAI wraps what the configuration raises)
        infer(*arguments, **settings)
    error = input_error_behind(caught.value)
    assert error is not None, caught.value
    return str(error)


@pytest.fixture(scope="module")
def solid_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = workflow("inference.yaml", **SOLID).parser.get_parsed_content("network")
    return save_model(
        tmp_path_factory.mktemp("solid") / "model.pt", network, ellipsoids(centred(SIZE, (1, 1, 1)), SIZE)
    )


@pytest.fixture(scope="module")
def plane_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = workflow("inference.yaml", "data/letter_b.yaml", **PLANE).parser.get_parsed_content("network")
    atlas = ellipsoids(centred((32, 32), (2, 2)), (32, 32))
    return save_model(tmp_path_factory.mktemp("plane") / "model.pt", network, atlas)


def save_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine)
    image.set_qform(affine, "scanner")
    nib.save(image, path)
    return path


def reoriented(image: nib.Nifti1Image, codes: str) -> nib.Nifti1Image:
    """The same image stored with other axes."""
    change = ornt_transform(nib.io_orientation(image.affine), axcodes2ornt(codes))
    voxels = np.ascontiguousarray(apply_orientation(np.asanyarray(image.dataobj), change))
    return nib.Nifti1Image(voxels, image.affine @ inv_ornt_aff(change, image.shape))


# Geometry: one run over the same anatomy on many grids.

SHIFT = (1.5, -1.0, 0.7)  # mm by which the subjects differ from the atlas
TURN = Rotation.from_euler("xz", [20, 20], degrees=True).as_matrix()
GRIDS: Mapping[str, tuple[tuple[int, int, int], tuple[float, float, float], np.ndarray]] = {
    "plain": ((24, 30, 22), (1.0, 1.0, 1.0), np.eye(3)),
    "oblique": ((26, 30, 22), (1.0, 1.0, 1.0), TURN),
    "anisotropic": ((36, 36, 12), (0.7, 0.9, 2.0), np.eye(3)),
    "large": ((30, 40, 26), (1.0, 1.0, 1.0), np.eye(3)),
    "small": ((18, 23, 18), (1.0, 1.0, 1.0), np.eye(3)),
}
STORED = {"flipped": "LPI", "permuted": "PSR"}
CASES = (*GRIDS, *STORED)


def truth_of(name: str) -> np.ndarray:
    shape, spacing, _ = GRIDS[name]
    return ellipsoids(centred(shape, spacing), shape, SHIFT)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("subjects")
    for name, (shape, spacing, turn) in GRIDS.items():
        affine = np.eye(4)
        affine[:3, :3] = turn
        affine = affine @ centred(shape, spacing)
        affine[:3, 3] += [10.0, -20.0, 30.0]
        save_nifti(folder / f"{name}.nii.gz", picture(truth_of(name)), affine)
    plain = nib.load(folder / "plain.nii.gz")
    for name, codes in STORED.items():
        nib.save(reoriented(plain, codes), folder / f"{name}.nii")
    return folder


@pytest.fixture(scope="module")
def solved(subjects: Path, solid_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return infer(subjects, tmp_path_factory.mktemp("solved"), solid_model, **SOLID)


def original(subjects: Path, case: str) -> Path:
    return next(subjects.glob(f"{case}.nii*"))


def read_labels(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Dice of the worse label."""
    labels = {int(value): str(value) for value in np.unique(other) if value > 0}
    return min(row["dice"] for row in score_labelmap(one, other, labels, [1.0] * one.ndim))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("result", RESULTS)
def test_results_lie_exactly_on_the_input_grid(subjects: Path, solved: Path, case: str, result: str) -> None:
    source, output = original(subjects, case), solved / case / f"{case}_{result}.nii.gz"
    image, labels = nib.load(source), nib.load(output)
    assert labels.shape == image.shape
    np.testing.assert_array_equal(labels.affine, image.affine)
    # Tools that prefer the qform see the same grid; a quaternion in single precision costs 1e-6.
    np.testing.assert_allclose(labels.get_qform(), image.affine, atol=1e-4)
    assert labels.get_data_dtype() == np.uint8
    seen, expected = sitk.ReadImage(str(output)), sitk.ReadImage(str(source))
    assert seen.GetSize() == expected.GetSize()
    for attribute in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(seen, attribute)(), getattr(expected, attribute)(), atol=1e-5)


@pytest.mark.parametrize("case", GRIDS)
def test_results_show_the_anatomy(solved: Path, case: str) -> None:
    # The ITN is exact but for resampling. Refinement moves whole ellipsoids, blurred by one interpolation or two.
    truth = truth_of(case)
    assert dice(read_labels(solved / case / f"{case}_itn.nii.gz"), truth) > 0.9
    assert dice(read_labels(solved / case / f"{case}_seg.nii.gz"), truth) > 0.88
    assert dice(read_labels(solved / case / f"{case}_one_pass.nii.gz"), truth) < 0.8


@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize("case", STORED)
def test_the_stored_orientation_changes_nothing(solved: Path, case: str, result: str) -> None:
    back = reoriented(nib.load(solved / case / f"{case}_{result}.nii.gz"), "RAS")
    plain = read_labels(solved / "plain" / f"plain_{result}.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), plain)


def resampled_atlas(case_dir: Path, reference: sitk.Image) -> np.ndarray:
    """Argmax, array axes as SimpleITK has them, of the atlas that SimpleITK brings onto a reference grid."""
    transform = sitk.ReadTransform(str(case_dir / f"{case_dir.name}_atlas_to_subject.h5"))
    atlas = sitk.ReadImage(str(case_dir.parent / "atlas" / "atlas_probabilities.nii.gz"))
    if atlas.GetDimension() == 4:
        size = list(atlas.GetSize())
        channels = [sitk.Extract(atlas, [*size[:3], 0], [0, 0, 0, index]) for index in range(size[3])]
    else:
        channels = [sitk.VectorIndexSelectionCast(atlas, i) for i in range(atlas.GetNumberOfComponentsPerPixel())]
    moved = [sitk.GetArrayFromImage(sitk.Resample(c, reference, transform, sitk.sitkLinear, 0.0)) for c in channels]
    return np.argmax(moved, axis=0)


@pytest.mark.parametrize("case", CASES)
def test_simpleitk_gets_our_result_from_atlas_and_transform(subjects: Path, solved: Path, case: str) -> None:
    result = sitk.GetArrayFromImage(sitk.ReadImage(str(solved / case / f"{case}_seg.nii.gz")))
    theirs = resampled_atlas(solved / case, sitk.ReadImage(str(original(subjects, case))))
    # Where the voxels of image and model coincide, the two differ by rounding alone. Elsewhere SimpleITK interpolates
    # the atlas once, ours goes through the model's grid and so is slightly smoother at the labels' edges.
    coincide = case not in ("anisotropic",)
    assert (theirs == result).mean() >= (0.9999 if coincide else 0.99)
    assert dice(theirs, result) >= (0.999 if coincide else 0.93)


@pytest.mark.parametrize("case", CASES)
def test_the_two_transforms_are_inverse(subjects: Path, solved: Path, case: str) -> None:
    to_subject, to_atlas = (
        sitk.ReadTransform(str(solved / case / f"{case}_{name}.h5"))
        for name in ("atlas_to_subject", "subject_to_atlas")
    )
    labels = sitk.ReadImage(str(solved / case / f"{case}_seg.nii.gz"))
    foreground = np.argwhere(sitk.GetArrayFromImage(labels) > 0)[::7, ::-1].tolist()
    points = [labels.TransformIndexToPhysicalPoint(index) for index in foreground]
    returned = [to_atlas.TransformPoint(to_subject.TransformPoint(point)) for point in points]
    # Each direction is a field of its own, sampled at 2 mm: what that may cost.
    error = np.linalg.norm(np.subtract(returned, points), axis=1)
    assert error.mean() < 0.1
    assert error.max() < 0.3


def test_reports_say_what_happened(solved: Path) -> None:
    report = json.loads((solved / "plain" / "plain.json").read_text())
    assert report["loss_after"] < 0.5 * report["loss_before"]
    assert 0 < report["iterations"] <= SOLID["refine_iterations"]
    assert report["min_jacobian"] > 0
    assert report["folded_fraction"] == 0
    assert 0.95 < report["ic_dice"] <= 1
    assert 0 <= report["mice"] < 0.1
    assert report["topology"]["anterior"] == {"components": 1, "holes": 0, "cavities": 0}
    assert not report["warnings"]
    assert any("larger" in text for text in json.loads((solved / "large" / "large.json").read_text())["warnings"])
    with (solved / "summary.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows] == sorted(CASES)
    assert all(row["posterior components"] == "1" for row in rows)


def test_the_atlas_is_written_once(solved: Path, solid_model: Path) -> None:
    state = torch.load(solid_model, weights_only=True)
    probabilities = nib.load(solved / "atlas" / "atlas_probabilities.nii.gz")
    np.testing.assert_array_equal(np.moveaxis(probabilities.get_fdata(), -1, 0), state["atlas_labels"][0])
    labels = nib.load(solved / "atlas" / "atlas_labelmap.nii.gz")
    np.testing.assert_array_equal(labels.dataobj, state["atlas_labels"][0].argmax(dim=0))
    image = nib.load(solved / "atlas" / "atlas_image.nii.gz")
    for file in (probabilities, labels, image):
        np.testing.assert_allclose(file.affine, centred(SIZE, (1, 1, 1)))


def test_a_dicom_series_gives_nifti_on_its_grid(tmp_path: Path, solid_model: Path, write_series: Any) -> None:
    write_series(tmp_path / "data" / "study")
    output = infer(tmp_path / "data", tmp_path / "out", solid_model, **{**SOLID, "refine_iterations": 2})
    _same_grid_as_series(tmp_path / "data" / "study", output / "study" / "study_seg.nii.gz")


def _same_grid_as_series(folder: Path, output: Path) -> None:
    """Against SimpleITK's order of the slices, and against MONAI's own reader."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    expected, seen = reader.Execute(), sitk.ReadImage(str(output))
    assert seen.GetSize() == expected.GetSize()
    for attribute in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(seen, attribute)(), getattr(expected, attribute)(), atol=1e-4)
    volume = LoadImage(reader=PydicomReader())(folder)
    np.testing.assert_allclose(nib.load(output).affine, volume.affine.numpy(), atol=1e-4)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PNG files with the values 0 and 255, listed with their labels; of other sizes than the model."""
    folder = tmp_path_factory.mktemp("letters")
    for name, shape in (("wide", (70, 60)), ("tall", (64, 90))):
        # A PNG's world has x and y reversed against the atlas grid.
        label = 255 * ellipsoids(np.diag([-1.0, -1.0, 1.0]) @ centred(shape, (1, 1)), shape, (2.0, -1.0))
        noisy = (0.6 * label + np.random.default_rng(0).integers(0, 20, shape)).astype(np.uint8)
        for kind, pixels in (("image", noisy), ("label", label)):
            (folder / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels.T.copy()).save(folder / kind / f"{name}.png")
    entries = [{"image": f"image/{name}.png", "label": f"label/{name}.png"} for name in ("wide", "tall")]
    (folder / "dataset.json").write_text(json.dumps({"test": entries, "one": entries[:1]}))
    return folder


def test_png_in_png_out_and_itk_agrees(letters: Path, tmp_path: Path, plane_model: Path) -> None:
    # This STN has learned nothing, and the robust similarity takes what its far start does not cover for clutter.
    squared_error = {"_target_": "atlas_istn.registration.similarity.squared_error", "_mode_": "callable"}
    settings = {**PLANE, "refine_similarity": squared_error}
    output = infer(letters, tmp_path, plane_model, "inference.yaml", "data/letter_b.yaml", **settings)
    for case in ("wide", "tall"):
        source = Image.open(letters / "label" / f"{case}.png")
        for result in RESULTS:
            labels = Image.open(output / case / f"{case}_{result}.png")
            assert labels.size == source.size
            assert set(np.unique(labels)) == {0, 255}
        refined = np.asarray(Image.open(output / case / f"{case}_seg.png"))
        assert dice(refined // 255, np.asarray(source) // 255) > 0.9  # one pixel around the shape costs 0.1
        theirs = resampled_atlas(output / case, sitk.ReadImage(str(letters / "image" / f"{case}.png")))
        # The pixels are half as wide as the model's: see the anisotropic case above.
        assert (theirs == refined // 255).mean() >= 0.99
    assert set(np.unique(read_labels(output / "atlas" / "atlas_labelmap.nii.gz"))) == {0, 255}


# Parameters, order and repetition.


@pytest.fixture
def pair(tmp_path: Path, subjects: Path) -> Path:
    """A folder with two of the subjects."""
    folder = tmp_path / "pair"
    folder.mkdir()
    for name in ("anisotropic", "plain"):
        (folder / f"{name}.nii.gz").symlink_to(subjects / f"{name}.nii.gz")
    return folder


def test_a_run_repeats_alone_in_a_batch_and_in_any_order(
    pair: Path, solved: Path, tmp_path: Path, solid_model: Path
) -> None:
    def same(output: Path, share: float, cases: tuple[str, ...] = ("anisotropic", "plain")) -> None:
        for case in cases:
            name = f"{case}/{case}_seg.nii.gz"
            assert (read_labels(output / name) == read_labels(solved / name)).mean() >= share

    flow = workflow(
        "inference.yaml", dataset_dir=str(pair), output_dir=str(tmp_path / "x"), ckpt_path=str(solid_model), **SOLID
    )
    flow.parser.get_parsed_content("dataset").data.reverse()
    flow.run()
    same(tmp_path / "x", 1.0)
    # A batch is computed by other kernels, in bf16: single voxels at the labels' edges may change.
    same(infer(pair, tmp_path / "batch", solid_model, **SOLID, batch_size=2), 0.999)


def test_no_iterations_give_the_one_pass(pair: Path, tmp_path: Path, solid_model: Path) -> None:
    output = infer(pair, tmp_path / "out", solid_model, **{**SOLID, "refine_iterations": 0})
    for case in ("anisotropic", "plain"):
        one_pass, refined = (read_labels(output / case / f"{case}_{name}.nii.gz") for name in ("one_pass", "seg"))
        np.testing.assert_array_equal(refined, one_pass)
        report = json.loads((output / case / f"{case}.json").read_text())
        assert report["loss_after"] == report["loss_before"]


def test_an_itn_that_is_adapted_is_told_of(pair: Path, tmp_path: Path) -> None:
    settings = {
        **SOLID,
        "itn": "$torch.nn.Sequential(torch.nn.InstanceNorm3d(1, affine=True), torch.nn.Conv3d(1, 3, 1))",
        "refine_iterations": 0,
        "refine_adaptation": {"steps": 1, "rate": 0.01, "disagreement": 0.01, "confidence": 1.0},
    }
    network = workflow("inference.yaml", **settings).parser.get_parsed_content("network")
    classes = torch.from_numpy(ellipsoids(centred(SIZE, (1, 1, 1)), SIZE)).long()
    network.atlas_labels.copy_(torch.nn.functional.one_hot(classes, 3).movedim(-1, 0)[None].float())
    torch.save(network.state_dict(), tmp_path / "model.pt")
    output = infer(pair, tmp_path / "out", tmp_path / "model.pt", **settings)
    report = json.loads((output / "plain" / "plain.json").read_text())
    assert report["itn_adapted"] is True
    assert any("it was adapted to this image" in warning for warning in report["warnings"])


def test_weights_mode_lowers_the_loss(pair: Path, tmp_path: Path, solid_model: Path) -> None:
    settings = {**SOLID, "refine_iterations": 10, "refine_mode": "weights"}
    output = infer(pair, tmp_path / "out", solid_model, **settings)
    for case in ("anisotropic", "plain"):
        report = json.loads((output / case / f"{case}.json").read_text())
        assert report["loss_after"] < report["loss_before"]


def test_label_values_are_those_of_the_data_set(pair: Path, tmp_path: Path, solid_model: Path) -> None:
    settings = {**SOLID, "refine_iterations": 0, "label_values": [0, 7, 500]}
    output = infer(pair, tmp_path / "out", solid_model, **settings)
    for file in ("plain/plain_itn.nii.gz", "atlas/atlas_labelmap.nii.gz"):
        assert set(np.unique(read_labels(output / file))) == {0, 7, 500}


def test_test_list_chooses_the_cases(letters: Path, tmp_path: Path, plane_model: Path) -> None:
    settings = {**PLANE, "refine_iterations": 0, "test_list": "one"}
    output = infer(letters, tmp_path, plane_model, "inference.yaml", "data/letter_b.yaml", **settings)
    assert sorted(path.name for path in output.iterdir()) == [
        *("atlas", "labels.ctbl", "labels.label.txt", "summary.csv", "wide")
    ]


# Evaluation.


@pytest.fixture(scope="module")
def labelled(subjects: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MSD folder: two cases that can be scored, and one whose label lies on another grid."""
    folder = tmp_path_factory.mktemp("labelled")
    entries = []
    for name in ("anisotropic", "plain", "shifted"):
        case = "plain" if name == "shifted" else name
        image = nib.load(subjects / f"{case}.nii.gz")
        affine = image.affine.copy()
        save_nifti(folder / "imagesTr" / f"{name}.nii.gz", image.get_fdata(dtype=np.float32), affine)
        affine[0, 3] += 1.0 if name == "shifted" else 0.0
        save_nifti(folder / "labelsTr" / f"{name}.nii.gz", truth_of(case), affine)
        entries.append({"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"})
    (folder / "dataset.json").write_text(json.dumps({"test": entries, "good": entries[:2]}))
    return folder


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_native_scores_are_those_of_the_written_files(
    labelled: Path, tmp_path: Path, solid_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = mistake(labelled, tmp_path, solid_model, "inference.yaml", "evaluate.yaml", **SOLID)
    assert error.startswith("1 of 3 cases failed")
    assert "shifted" in error
    rows = read_rows(tmp_path / "metrics.csv")
    assert {row["case"] for row in rows} == {"anisotropic", "plain"}
    names = {"itn": "itn", "one_pass": "one_pass", "refine": "seg"}
    for row in rows:
        case, label = row["case"], {"anterior": 1, "posterior": 2}[row["label"]]
        output = nib.load(tmp_path / case / f"{case}_{names[row['result']]}.nii.gz")
        truth = read_labels(labelled / "labelsTr" / f"{case}.nii.gz")
        spacing = [float(s) for s in output.header.get_zooms()]
        expected = score_labelmap(np.asanyarray(output.dataobj), truth, {label: row["label"]}, spacing)[0]
        for metric in ("dice", "asd", "hd", "hd95", "surface_dice"):
            assert float(row[metric]) == pytest.approx(expected[metric], abs=1e-5), (row, metric)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["cases"] == 2
    assert [failure["case"] for failure in summary["failures"]] == ["shifted"]
    table = capsys.readouterr().out
    assert all(word in table for word in ("itn", "one_pass", "refine", "posterior", "HD95 [mm]", "shifted"))


def test_model_space_scores_on_the_networks_grid(
    labelled: Path, letters: Path, tmp_path: Path, solid_model: Path, plane_model: Path
) -> None:
    settings = {"evaluate_space": "model", "refine_iterations": 20}
    solid = {**SOLID, **settings, "test_list": "good"}
    infer(labelled, tmp_path / "solid", solid_model, "inference.yaml", "evaluate.yaml", **solid)
    files = ("inference.yaml", "evaluate.yaml", "data/letter_b.yaml")
    infer(letters, tmp_path / "plane", plane_model, *files, **{**PLANE, **settings})
    for name in ("solid", "plane"):
        rows = read_rows(tmp_path / name / "metrics.csv")
        # The ITN reads the class off the intensity: what is lost is the edge, where slices of 2 mm become 1 mm.
        assert all(float(row["dice"]) > 0.75 for row in rows if row["result"] == "itn")
        assert not (tmp_path / name / "atlas").exists()
    # Distances are multiples of the 2 mm pixels there.
    assert all(float(row["hd"]) >= 2 or float(row["hd"]) == 0 for row in rows)


def test_the_smoothed_reference_of_the_papers_code_has_no_hole_of_one_pixel(tmp_path: Path) -> None:
    letter = np.zeros((128, 128), np.uint8)
    letter[40:90, 40:90] = 255
    letter[60:62, 64:66] = 0  # one pixel on the grid of 2 mm
    for name in ("image", "label"):
        Image.fromarray(letter).save(tmp_path / f"{name}.png")
    case = {name: str(tmp_path / f"{name}.png") for name in ("image", "label")}
    files = [str(CONFIGS / f"{name}.yaml") for name in ("inference", "evaluate", "data/letter_b")]
    references = {}
    for sigma in (0, 0.5):
        config = ConfigParser(ConfigParser.load_config_files(files))
        config.update({"evaluate_space": "model", "reference_sigma": sigma})
        references[sigma] = config.get_parsed_content("reference")(case)["label"][0].numpy()
    assert references[0].sum() == (letter[::2, ::2] > 0).sum()
    assert references[0.5].sum() == references[0].sum() + 1
    assert references[0][32, 30] < references[0.5][32, 30]  # PNGs are read as [x, y]


# Bad input: one clear message, and the other cases are finished.


def bad_images(folder: Path, good: Path) -> list[str]:
    """A folder with one good image, and one of each kind that cannot be used; returns the names of the latter."""
    image = nib.load(good)
    voxels, affine = image.get_fdata(dtype=np.float32), image.affine
    folder.mkdir()
    (folder / "good.nii.gz").write_bytes(good.read_bytes())
    (folder / "truncated.nii.gz").write_bytes(good.read_bytes()[:2000])
    (folder / "text.nii.gz").write_text("not an image")
    holes = voxels.copy()
    holes[3, 3, 3] = np.nan
    save_nifti(folder / "nan.nii.gz", holes, affine)
    save_nifti(folder / "constant.nii.gz", np.full_like(voxels, 7), affine)
    save_nifti(folder / "series.nii.gz", np.stack([voxels, voxels], axis=-1), affine)
    Image.new("RGB", (20, 20), (1, 2, 3)).save(folder / "colour.png")
    return ["colour", "constant", "nan", "series", "text", "truncated"]


STRIDED = {
    "_target_": "monai.networks.nets.UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [4, 8, 16],
    "strides": [2, 2],
}
MISTAKES = {
    "no folder": ({"dataset_dir": "missing"}, "no such folder"),
    "empty folder": ({"dataset_dir": "empty"}, "no image found"),
    "no such list": ({"test_list": "other"}, "'other' does not exist"),
    "missing files": ({"dataset_dir": "listed", "test_list": "test"}, "1 files of the list 'test' do not exist"),
    "output is a file": ({"output_dir": "file"}, "cannot be written"),
    "no checkpoint": ({"ckpt_path": "missing.pt"}, "no such checkpoint"),
    "text as checkpoint": ({"ckpt_path": "file"}, "not readable as a checkpoint"),
    "training checkpoint": ({"ckpt_path": "training.pt"}, "holds more than weights"),
    "other labels": ({"label_names": {0: "background", 1: "all"}}, "does not map 1 channels of size [24, 32, 24] to 2"),
    "other size": ({"spatial_size": [32, 32, 32]}, "atlas_image has the shape [1, 1, 24, 32, 24], expected [1, 1, 32"),
    "other network": ({"stn#channels": [4, 8]}, "has the shape"),
    "size without stride": ({"itn": STRIDED, "spatial_size": [25, 32, 24]}, "Set spatial_size to [28, 32, 24]"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_the_run_before_any_work(name: str, labelled: Path, tmp_path: Path, solid_model: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "listed").mkdir()
    (tmp_path / "listed" / "dataset.json").write_text(json.dumps({"test": [{"image": "a.nii.gz"}]}))
    torch.save({"network": torch.load(solid_model), "epoch": 3}, tmp_path / "training.pt")
    changes, expected = MISTAKES[name]
    paths = {"dataset_dir": labelled, "output_dir": tmp_path / "out", "ckpt_path": solid_model}
    paths |= {key: tmp_path / changes[key] for key in paths.keys() & changes.keys()}
    settings = {key: value for key, value in changes.items() if key not in paths}
    error = mistake(*paths.values(), "inference.yaml", **{**SOLID, "test_list": "good", **settings})
    assert expected in error
    assert len(error) < 400
    assert not list(tmp_path.rglob("*_seg.nii.gz"))


def test_evaluation_refuses_an_output_folder_before_any_work(labelled: Path, tmp_path: Path, solid_model: Path) -> None:
    (tmp_path / "file").write_text("text")
    flow = workflow(
        "inference.yaml",
        "evaluate.yaml",
        dataset_dir=str(labelled),
        output_dir=str(tmp_path / "file"),
        ckpt_path=str(solid_model),
        evaluate_space="model",
        **SOLID,
    )
    with pytest.raises(RuntimeError) as caught:
        flow.run()
    assert "cannot be written" in str(input_error_behind(caught.value))
    assert flow.parser.get_parsed_content("evaluator").state.iteration == 0


def test_a_series_with_a_missing_slice_fails_alone(tmp_path: Path, solid_model: Path, write_series: Any) -> None:
    write_series(tmp_path / "data" / "whole")
    write_series(tmp_path / "data" / "broken", lambda index, tags: index != 2)
    settings = {**SOLID, "refine_iterations": 0, "batch_size": 2}
    error = mistake(tmp_path / "data", tmp_path / "out", solid_model, "inference.yaml", **settings)
    assert error.startswith("1 of 2 cases failed:\n  broken: ")
    assert "missing slices" in error
    assert "Secret" not in error
    assert (tmp_path / "out" / "whole" / "whole_seg.nii.gz").is_file()
    rows = read_rows(tmp_path / "out" / "summary.csv")
    assert [(row["case"], bool(row["error"])) for row in rows] == [("whole", False), ("broken", True)]


# The commands as a user types them.


def command(run_id: str, config_file: str, folder: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """`python -m monai.bundle run` in a folder."""
    options = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    return subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", config_file, *options],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_bad_images_are_named_in_one_message_and_the_good_one_is_finished(
    subjects: Path, tmp_path: Path, solid_model: Path
) -> None:
    names = bad_images(tmp_path / "images", subjects / "plain.nii.gz")
    settings = {**SOLID, "dataset_dir": tmp_path / "images", "output_dir": tmp_path / "out", "ckpt_path": solid_model}
    done = command("inference", str(CONFIGS / "inference.yaml"), ROOT, **settings)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("cases failed") == 1
    message = done.stderr.split("\nerror: ")[1].strip().splitlines()
    assert message[0] == "6 of 7 cases failed:"
    assert [line.split(":")[0].strip() for line in message[1:]] == names
    for line, reason in zip(message[1:], ["2 dimensions", "constant", "not finite", "", "read", "read"], strict=True):
        assert reason in line
    assert (tmp_path / "out" / "good" / "good_seg.nii.gz").is_file()
    assert not [path for path in (tmp_path / "out").rglob("*") if ".part." in path.name]


def test_evaluate_runs_from_another_folder(letters: Path, tmp_path: Path, plane_model: Path) -> None:
    bundle = tmp_path / "elsewhere" / "bundle"
    (bundle / "models").mkdir(parents=True)
    (bundle / "models" / "model.pt").write_bytes(plane_model.read_bytes())
    files = [str(CONFIGS / name) for name in ("inference.yaml", "evaluate.yaml", "data/letter_b.yaml")]
    settings = {**PLANE, "dataset_dir": os.path.relpath(letters, tmp_path), "output_dir": "out", "bundle_root": bundle}
    done = command("evaluate", str(files), tmp_path, **settings)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "HD95 [pixels]" in done.stdout
    assert (tmp_path / "out" / "wide" / "wide_seg.png").is_file()
    assert len(read_rows(tmp_path / "out" / "metrics.csv")) == 2 * 3


# What training and inference have in common.

DATA_CONFIGS = sorted(f"data/{path.name}" for path in (CONFIGS / "data").glob("*.yaml"))


def stacked(*files: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / file) for file in files])
    return parser


@pytest.mark.parametrize("data", DATA_CONFIGS)
def test_training_and_inference_build_the_same_network(data: str) -> None:
    training, inference = stacked("train.yaml", data), stacked("inference.yaml", data)
    for name in ("network_def", "itn", "stn", "network"):
        assert training.get(name) == inference.get(name), name
    ours, theirs = (parser.get_parsed_content("network_def") for parser in (training, inference))
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert str(ours) == str(theirs)


def test_inference_alone_is_the_hippocampus_configuration() -> None:
    alone, full = stacked("inference.yaml"), stacked("inference.yaml", "data/hippocampus.yaml")
    for name in ("spatial_size", "spacing", "label_names", "label_values"):
        assert alone.get_parsed_content(name) == full.get_parsed_content(name)


@pytest.mark.parametrize("case", ["anisotropic", "plain"])
def test_training_and_inference_prepare_an_image_alike(labelled: Path, case: str) -> None:
    item = {
        "image": str(labelled / "imagesTr" / f"{case}.nii.gz"),
        "label": str(labelled / "labelsTr" / f"{case}.nii.gz"),
    }
    prepared = [
        stacked(file, "data/hippocampus.yaml").get_parsed_content("preprocessing")(dict(item))["image"]
        for file in ("train.yaml", "inference.yaml")
    ]
    torch.testing.assert_close(*(torch.as_tensor(image) for image in prepared), rtol=0, atol=0)


# Real images.


@pytest.mark.skipif(not (DATA / "hippocampus_dicom").is_dir(), reason=f"no real data in {DATA}: set ATLAS_ISTN_DATA")
def test_a_real_series_gives_nifti_on_its_grid(tmp_path: Path, solid_model: Path) -> None:
    folder = DATA / "hippocampus_dicom" / "Study1"
    infer(folder, tmp_path, solid_model, **{**SOLID, "refine_iterations": 2})
    _same_grid_as_series(folder, tmp_path / "Study1" / "Study1_seg.nii.gz")


@pytest.mark.skipif(not (DATA / "hippocampus_dicom").is_dir(), reason=f"no real data in {DATA}: set ATLAS_ISTN_DATA")
def test_a_real_series_gives_dicom_seg_with_the_voxels_of_the_nifti(
    subjects: Path, tmp_path: Path, solid_model: Path, read_segmentation: Callable[..., np.ndarray]
) -> None:
    shutil.copytree(DATA / "hippocampus_dicom" / "Study1", tmp_path / "data" / "Study1")
    shutil.copy(subjects / "small.nii.gz", tmp_path / "data")  # no series, so it gets NIfTI alone
    settings = {**SOLID, "refine_iterations": 2, "output_format": "dicom_seg", "write_transforms": False}
    output = infer(tmp_path / "data", tmp_path / "out", solid_model, **settings)
    assert [path.name for path in output.rglob("*.dcm")] == ["Study1_seg.dcm"]
    assert not [path for path in output.rglob("*") if path.suffix in (".h5", ".npz")]
    assert (output / "small" / "small_seg.nii.gz").is_file()
    labels = nib.load(output / "Study1" / "Study1_seg.nii.gz")
    expected = np.asanyarray(labels.dataobj)
    assert set(np.unique(expected)) == {0, 1, 2}
    segmentation = read_segmentation(output / "Study1" / "Study1_seg.dcm", labels.affine, labels.shape)
    np.testing.assert_array_equal(segmentation, expected)


@pytest.mark.parametrize(
    ("chosen", "message"), [("dicom_seg", "none of the images is a DICOM"), ("dicom", "expected nifti or dicom_seg")]
)
def test_dicom_seg_is_for_dicom(subjects: Path, solid_model: Path, tmp_path: Path, chosen: str, message: str) -> None:
    assert message in mistake(subjects, tmp_path, solid_model, **{**SOLID, "output_format": chosen})


@pytest.mark.skipif(not (DATA / "hippocampus").is_dir(), reason=f"no real data in {DATA}: set ATLAS_ISTN_DATA")
def test_real_volumes_keep_their_grid_and_itk_agrees(tmp_path: Path, solid_model: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in ("004", "006"):
        name = f"hippocampus_{number}.nii.gz"
        (tmp_path / "data" / name).symlink_to((DATA / "hippocampus" / "imagesTr" / name).resolve())
    output = infer(tmp_path / "data", tmp_path / "out", solid_model, **{**SOLID, "refine_iterations": 10})
    for path in (tmp_path / "data").iterdir():
        case = path.name.removesuffix(".nii.gz")
        image, labels = nib.load(path), nib.load(output / case / f"{case}_seg.nii.gz")
        assert labels.shape == image.shape
        np.testing.assert_array_equal(labels.affine, image.affine)
        theirs = resampled_atlas(output / case, sitk.ReadImage(str(path)))
        inside = np.moveaxis(np.asanyarray(labels.dataobj), [0, 1, 2], [2, 1, 0])
        assert (theirs == inside).mean() > 0.999  # what the smaller model grid leaves out is background in ours alone
