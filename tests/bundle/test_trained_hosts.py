# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""A bundle that a training made, in every host: `pytest -m 'monai_label or monai_deploy'`, some minutes.

From a labelled folder by `plan` and `training`, with small settings; then MONAI Label over HTTP in 2D and 3D, and MONAI
Deploy with a DICOM series of the same voxels. All give the voxels of `run inference`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from PIL import Image

from atlas_istn.data.letter_b import generate_letter_b
from atlas_istn.plan import plan
from host_runs import make_app, needs_label, run_app, run_inference, serving, voxels
from inference_runs import ellipsoids, picture
from support import ROOT

pytestmark = pytest.mark.slow

SHAPE = (34, 50, 30)
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])  # axes as in DICOM
AFFINE[:3, 3] = np.array([1, 1, -1]) * (np.array(SHAPE) - 1) / 2
QUICK = {
    "device": "cpu",
    "localise": False,
    "max_epochs": 2,
    "batch_size": 2,
    "val_interval": 1,
    "final_atlas_rounds": 1,
    "refine_iterations": 5,
    "itn_member#filters": [4, 8, 8, 8],
    "stn#channels": [8, 16],
}


def trained(data: Path, work: Path) -> Path:
    """The bundle of a data set, by the two commands of a user."""
    hook = sys.excepthook  # the workflow replaces it
    plan(str(data), str(work), bundle_dir=str(ROOT / "bundle"))
    files = [str(ROOT / "bundle" / "configs" / "train.yaml"), str(work / "configs" / "data.yaml")]
    flow = ConfigWorkflow(files, run_id="training", logging_file=False, **QUICK)
    flow.initialize()
    flow.run()
    sys.excepthook = hook
    return work


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a 2D model, ``work``, and of its data."""
    folder = tmp_path_factory.mktemp("pictures")
    generate_letter_b(folder / "data", num_training=4, num_validation=2, num_test=2, num_corrupt=1)
    trained(folder / "data", folder / "work")
    (folder / "data" / "imagesTs").rename(folder / "scans")
    return folder


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a 3D model. Labels have the values 3 and 7."""
    folder = tmp_path_factory.mktemp("volumes")
    shifts = np.random.default_rng(0).normal(0, 1, (8, 3))
    for number, shift in enumerate(shifts):
        label = ellipsoids(AFFINE, SHAPE, tuple(shift))
        image = (picture(label, number) + 100).clip(0).round().astype(np.uint16)
        for part, array in (("images", image), ("labels", np.array([0, 3, 7], dtype=np.uint8)[label])):
            (folder / "data" / part).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, AFFINE), folder / "data" / part / f"patient_{number}.nii.gz")
    trained(folder / "data", folder / "work")
    (folder / "scans").mkdir()
    for number in (0, 1):
        shutil.copy(folder / "data" / "images" / f"patient_{number}.nii.gz", folder / "scans")
    return folder


@pytest.mark.monai_label
@needs_label
def test_monai_label_gives_the_pictures_of_run_inference(pictures: Path, tmp_path: Path) -> None:
    app = make_app(pictures / "work", tmp_path, "letters")
    output = run_inference(pictures / "work", pictures / "scans", tmp_path / "out")
    names = sorted(path.stem for path in (pictures / "scans").iterdir())[:2]
    with serving(app, str(pictures / "scans"), "letters") as server:
        for name in names:
            answer = server.infer(name)
            assert answer.status_code == 200, answer.text
            (tmp_path / f"{name}.png").write_bytes(answer.content)
            found = np.asarray(Image.open(tmp_path / f"{name}.png"))  # indices of classes, as `info/` lists them
            expected = np.asarray(Image.open(output / name / f"{name}_seg.png"))
            np.testing.assert_array_equal(found, expected // 255)
            assert found.any()


@pytest.mark.monai_label
@needs_label
def test_monai_label_gives_the_voxels_of_run_inference(volumes: Path, tmp_path: Path) -> None:
    app = make_app(volumes / "work", tmp_path, "solids")
    output = run_inference(volumes / "work", volumes / "scans", tmp_path / "out")
    with serving(app, str(volumes / "scans"), "solids") as server:
        labels = server.ask("GET", "info/").json()["models"]["solids"]["labels"]
        assert list(labels.values()) == [1, 2]
        for name in ("patient_0", "patient_1"):
            answer = server.segment(name, tmp_path)
            expected = nib.load(output / name / f"{name}_seg.nii.gz")
            np.testing.assert_array_equal(np.array([0, 3, 7])[voxels(answer)], voxels(expected))
            np.testing.assert_allclose(answer.affine, expected.affine, atol=1e-4)
            assert set(np.unique(voxels(expected))) == {0, 3, 7}


@pytest.mark.monai_deploy
def test_monai_deploy_gives_them_for_a_dicom_series(
    volumes: Path,
    tmp_path: Path,
    write_series: Callable[..., np.ndarray],
    read_segmentation: Callable[..., np.ndarray],
) -> None:
    image = nib.load(volumes / "scans" / "patient_0.nii.gz")

    def edit(index: int, tags: dict[str, Any]) -> None:
        position = (np.diag([-1, -1, 1, 1]) @ AFFINE @ [0, 0, index, 1])[:3]
        tags.update(ImagePositionPatient=position.tolist(), PixelSpacing=[1.0, 1.0], StudyInstanceUID="1.2.3")
        tags.update(FrameOfReferenceUID="1.2.4", PatientID="Secret-ID")

    write_series(tmp_path / "study", edit, np.asanyarray(image.dataobj).transpose(2, 1, 0))
    done = run_app(tmp_path / "study", tmp_path / "seg", volumes / "work")
    assert done.returncode == 0, done.stderr
    output = run_inference(volumes / "work", volumes / "scans", tmp_path / "out")
    expected = voxels(nib.load(output / "patient_0" / "patient_0_seg.nii.gz"))
    found = read_segmentation(tmp_path / "seg" / "series_1_seg.dcm", AFFINE, SHAPE)
    np.testing.assert_array_equal(np.array([0, 3, 7])[found], expected)
