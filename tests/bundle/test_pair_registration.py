# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Registration of pairs by the bundle that a training makes, against SimpleITK applying what it writes."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from atlas_istn.errors import input_error_behind
from atlas_istn.report import write_report
from pair_runs import PAIR, QUICK, run, write_config, write_pairs

NAME = "case_0__case_3"


@pytest.fixture(scope="module", params=[(2, "affine"), (3, "affine_velocity"), (3, "b_spline")], ids=str)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training, with the data set beside it."""
    dim, transformation = request.param
    folder, hook = tmp_path_factory.mktemp("pairs"), sys.excepthook
    write_pairs(folder / "data", dim)
    (folder / "data" / "points").mkdir()
    for number in range(5):
        rows = "".join(f"p{k},{-10.0 - k + number},{-9.0 - 2 * k},{8.0 + k}\n" for k in range(4))
        (folder / "data" / "points" / f"case_{number}.csv").write_text(f"name,x,y,z\n{rows}")
    own = write_config(folder / "own.yaml", dim)
    configs = [PAIR / "train.yaml", PAIR / "transformations" / f"{transformation}.yaml", own]
    run("training", *configs, **{**QUICK, "dataset_dir": folder / "data", "output_dir": folder / "work"})
    sys.excepthook = hook
    return folder / "work"


@pytest.fixture(scope="module")
def registered(trained: Path) -> Path:
    """The folder of a run of that bundle."""
    out, hook = trained.parent / "out", sys.excepthook
    options = {"device": "cpu", "output_dir": out, "landmarks_dir": "points", "score_bound": True}
    with contextlib.chdir(trained.parent):  # nothing of the repository is beside it
        run("registration", trained / "configs" / "registration.yaml", bound_iterations=5, **options)
    sys.excepthook = hook
    return out


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def test_another_tool_that_applies_the_transform_gets_our_image(trained: Path, registered: Path) -> None:
    data = trained.parent / "data"
    fixed = SimpleITK.ReadImage(str(data / "imagesTr" / "case_0.nii.gz"), SimpleITK.sitkFloat32)
    transform = SimpleITK.ReadTransform(str(registered / NAME / f"{NAME}_moving_to_fixed.h5"))
    for ending, kind in (("warped", "imagesTr"), ("warped_labels", "labelsTr")):
        moving = SimpleITK.ReadImage(str(data / kind / "case_3.nii.gz"), SimpleITK.sitkFloat32)
        theirs = SimpleITK.GetArrayFromImage(SimpleITK.Resample(moving, fixed, transform, SimpleITK.sitkLinear)).T
        ours = nib.load(registered / NAME / f"{NAME}_{ending}.nii.gz").get_fdata()
        if kind == "imagesTr":
            np.testing.assert_allclose(ours, theirs, atol=0.05)
        else:
            assert dice(ours > 0, theirs > 0.5) > 0.99


def test_both_directions_undo_each_other_within_the_stated_error(registered: Path) -> None:
    report = json.loads((registered / NAME / f"{NAME}.json").read_text())
    assert 0 <= report["inverse_error_mean"] <= report["inverse_error_max"] < 0.5
    paths = [str(registered / NAME / f"{NAME}_{way}.h5") for way in ("moving_to_fixed", "fixed_to_moving")]
    there, back = (SimpleITK.ReadTransform(path) for path in paths)
    point = [-11.0, -10.0, 9.0][: there.GetDimension()]
    error = np.linalg.norm(np.subtract(back.TransformPoint(there.TransformPoint(point)), point))
    assert error <= report["inverse_error_max"] + 1e-6


def test_a_run_says_how_each_pair_went(registered: Path) -> None:
    report = json.loads((registered / NAME / f"{NAME}.json").read_text())
    assert report["objective_after"] <= report["objective_before"]
    assert len(report["objective_curve"]) == report["iterations"] + 1 <= 5
    assert list(report["scores"]) == list(report["tre"]) == ["identity", "one_pass", "refine", "bound"]
    assert report["scores"]["bound"]["structure"]["dice"] > report["scores"]["refine"]["structure"]["dice"]
    assert report["tre"]["identity"]["points"] == 4
    assert report["tre"]["identity"]["mean"] == pytest.approx(3.0)  # the points of case 3 lie 3 mm further
    rows = list(csv.DictReader((registered / "summary.csv").open()))
    assert [row["case"] for row in rows] == [NAME, "case_0__case_4"]
    assert float(rows[0]["refine structure dice"]) == pytest.approx(report["scores"]["refine"]["structure"]["dice"])
    summary = json.loads((registered / "summary.json").read_text())
    assert (summary["cases"], summary["failed"]) == (2, 0)


def test_the_report_has_a_page_for_each_pair(registered: Path, tmp_path: Path) -> None:
    write_report(registered, path=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count('<section class="pair"') == page.count("data:image/png;base64,") == 2
    assert NAME in page
    assert "structures registered directly" in page
    assert 'src="http' not in page


def test_landmarks_move_with_the_image(registered: Path) -> None:
    moved = list(csv.DictReader((registered / NAME / f"{NAME}_moved_points.csv").open()))
    transform = SimpleITK.ReadTransform(str(registered / NAME / f"{NAME}_fixed_to_moving.h5"))
    axes = "xyz"[: transform.GetDimension()]
    place = transform.TransformPoint([-7.0, -9.0, 8.0][: len(axes)])
    assert [float(moved[0][axis]) for axis in axes] == pytest.approx(list(place), abs=2e-3)


def test_the_bundle_says_what_it_is(trained: Path) -> None:
    metadata = json.loads((trained / "configs" / "metadata.json").read_text())
    summary = json.loads((trained / "validation" / "summary.json").read_text())
    mean = summary["results"]["refine"]["mean"]["dice"]["mean"]
    assert metadata["eval_metrics"]["dice_refine"] == pytest.approx(mean, abs=1e-4)
    assert "registration.yaml" in (trained / "docs" / "README.md").read_text()


def test_a_pair_that_cannot_be_used_leaves_the_others_alone(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    data = json.loads((trained.parent / "data" / "dataset.json").read_text())
    images = [str(trained.parent / "data" / f"imagesTr/case_{number}.nii.gz") for number in range(3)]
    (tmp_path / "bad.nii.gz").write_text("no image")
    pairs = [{"fixed": images[0], "moving": images[1]}, {"fixed": images[0], "moving": "bad.nii.gz"}]
    (tmp_path / "dataset.json").write_text(json.dumps({**data, "registration_test": pairs}))
    options = {"device": "cpu", "dataset_dir": tmp_path, "output_dir": tmp_path / "out"}
    with pytest.raises(RuntimeError) as caught:
        run("registration", trained / "configs" / "registration.yaml", **options)
    message = str(input_error_behind(caught.value))
    assert "1 of 2 cases failed" in message
    assert "bad.nii.gz" in message
    rows = list(csv.DictReader((tmp_path / "out" / "summary.csv").open()))
    assert rows[0]["case"] == "case_0__case_1"
    assert "refine structure dice" in rows[0]  # absolute paths: labels are beside the images


def files_of(folder: Path) -> dict[str, bytes | str]:
    """Relative path → content of every file; without what the clock says."""
    found: dict[str, bytes | str] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        text = path.read_text() if path.suffix in (".json", ".csv") else ""
        if path.suffix == ".json":
            content = {name: value for name, value in json.loads(text).items() if name != "seconds"}
            found[str(path.relative_to(folder))] = json.dumps(content)
        elif path.name == "summary.csv":
            rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(text.splitlines())]
            found[path.name] = json.dumps(rows)
        elif path.suffix == ".h5":  # HDF5 notes when it was written
            transform = SimpleITK.ReadTransform(str(path))
            found[str(path.relative_to(folder))] = str(transform.GetParameters() + transform.GetFixedParameters())
        else:
            found[str(path.relative_to(folder))] = text or path.read_bytes()
    return found


@pytest.mark.parametrize("trained", [(2, "affine")], indirect=True, ids=str)
def test_finished_pairs_are_left_as_they_are_by_content_and_settings(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    data, names = tmp_path / "data", [NAME, "case_0__case_4"]
    shutil.copytree(trained.parent / "data", data)

    def register(output: str, **more: object) -> dict[str, int]:
        """When the report of each pair was written: what is done anew may well say the same, seconds included."""
        options = {"device": "cpu", "dataset_dir": data, "output_dir": tmp_path / output, **more}
        run("registration", trained / "configs" / "registration.yaml", **options)
        return {name: (tmp_path / output / name / f"{name}.json").stat().st_mtime_ns for name in names}

    first = register("out")
    whole = files_of(tmp_path / "out")
    # As if it had been killed while it wrote the second pair, whose report would have been the last.
    for path in (tmp_path / "out" / names[1] / f"{names[1]}.json", *(tmp_path / "out").glob("*.csv")):
        path.unlink()
    second = register("out", resume=True)
    assert second[NAME] == first[NAME]
    assert second[names[1]] != first[names[1]]
    assert files_of(tmp_path / "out") == whole
    assert register("out", resume=True) == second  # nothing to do: scores and summary are those of all
    assert files_of(tmp_path / "out") == whole
    # Other structures under the same name, and other settings, are done anew.
    shutil.copyfile(data / "labelsTr" / "case_1.nii.gz", data / "labelsTr" / "case_3.nii.gz")
    third = register("out", resume=True)
    assert [third[name] == second[name] for name in names] == [False, True]
    fourth = register("out", resume=True, refine_iterations=3)
    assert all(fourth[name] != third[name] for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("trained", [(2, "affine")], indirect=True, ids=str)
def test_two_processes_share_the_pairs_and_end_with_one_summary(trained: Path, registered: Path) -> None:
    files = [trained / "configs" / "registration.yaml", PAIR.parent / "multi_gpu_inference.yaml"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "monai.bundle", "run", "registration", "--config_file", str([str(file) for file in files])]
    settings = {"landmarks_dir": "points", "score_bound": True, "bound_iterations": 5}
    command += [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    command += ["--output_dir", str(trained.parent / "shared")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=trained.parent, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert files_of(trained.parent / "shared") == files_of(registered)
