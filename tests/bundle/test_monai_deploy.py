# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The MONAI Deploy application: its rules for series, and, with `pytest -m monai_deploy`, the whole of it.

The application runs with the Python of its own environment, which `deploy/monai_deploy/run.sh` makes, or the one that
ATLAS_ISTN_DEPLOY_PYTHON names.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import yaml
from monai.bundle import ConfigParser
from pydicom.uid import generate_uid

from atlas_istn.errors import InputError
from host_runs import DEPLOY, DEPLOY_PYTHON, run_app, run_in_deploy, run_inference
from inference_runs import centred, ellipsoids, picture, save_model
from support import DATA, ROOT

SIZE = (48, 64, 48)

sys.path.insert(0, str(DEPLOY))
from series import Rules, select_series  # noqa: E402

FACTORS = yaml.safe_load((DEPLOY / "app.yaml").read_text(encoding="utf-8"))["series_rules"]
CONFIG = {"spatial_size": SIZE, "spacing": [1.0, 1.0, 1.0]}
METADATA = {"network_data_format": {"inputs": {"image": {"modality": "MR"}}}}
RULES = Rules.of(CONFIG, METADATA, **FACTORS)
STUDY = {"StudyInstanceUID": generate_uid(), "PatientID": "Secret-ID", "FrameOfReferenceUID": generate_uid()}
SECRETS = dict.fromkeys(  # no ^ in the name: a library warns of that, and quotes it
    (
        *("PatientName", "PatientID", "PatientComments", "OtherPatientNames", "PatientAddress", "StudyID"),
        *("StudyDescription", "AccessionNumber", "OperatorsName", "ReferringPhysicianName", "SeriesDescription"),
        *("InstitutionName", "StationName", "ProtocolName", "RequestedProcedureID"),
    ),
    "Secret",
)

WriteSeries = Callable[..., np.ndarray]


@pytest.fixture
def write_crop(write_series: WriteSeries) -> Callable[..., np.ndarray]:
    """A function that writes a series that suits the model, or, with other voxels, tags or distances, does not."""

    def write(
        folder: Path,
        shape: tuple[int, int, int] = (30, 50, 34),
        spacing: float = 1.0,
        distance: float = 1.0,
        left_out: tuple[int, ...] = (),
        pixels: np.ndarray | None = None,
        **changes: Any,
    ) -> np.ndarray:
        def edit(index: int, tags: dict[str, Any]) -> bool | None:
            position = [-20.0, -30.0, distance * index]
            tags.update(STUDY, ImagePositionPatient=position, PixelSpacing=[spacing, spacing], **changes)
            return index not in left_out

        if pixels is None:
            pixels = np.random.default_rng(0).integers(0, 1000, shape)
        return write_series(folder, edit, pixels.astype(np.uint16))

    return write


OTHERS: dict[str, dict[str, Any]] = {
    "modality": {"Modality": "CT"},
    "slices": {"shape": (3, 50, 34)},
    "regular grid": {"left_out": (7, 8)},
    "voxel size": {"distance": 2.0},
    "field of view": {"shape": (60, 128, 128)},
}
"""Rule → a series that breaks it alone: another modality, a scout, missing slices, thick slices, a whole head."""


def selected(study: Path, work: Path) -> list[Path]:
    select_series(study, work, RULES)
    return sorted(work.iterdir())


@pytest.mark.skipif(not (DATA / "hippocampus_dicom").is_dir(), reason=f"no DICOM series in {DATA} (ATLAS_ISTN_DATA)")
def test_the_real_series_suits(tmp_path: Path) -> None:
    study = DATA / "hippocampus_dicom" / "Study1"
    (folder,) = selected(study, tmp_path / "series")
    assert {path.resolve() for path in folder.iterdir()} == {path.resolve() for path in study.iterdir()}


@pytest.mark.parametrize("rule", OTHERS)
def test_another_series_is_refused_by_the_rule_that_it_breaks(
    tmp_path: Path, write_crop: Callable[..., np.ndarray], rule: str
) -> None:
    write_crop(tmp_path / "Secret^Name", SeriesNumber=4, **OTHERS[rule])
    with pytest.raises(InputError, match=rf"series 1 \(number 4, .* images\): rule '{rule}': ") as caught:
        select_series(tmp_path / "Secret^Name", tmp_path / "series", RULES)
    for identifier in ("Secret", "1.2.826", str(tmp_path)):
        assert identifier not in str(caught.value)


def test_every_rule_that_is_broken_is_named(tmp_path: Path, write_crop: Callable[..., np.ndarray]) -> None:
    for number, rule in enumerate(OTHERS, start=1):
        write_crop(tmp_path / "study" / str(number), SeriesNumber=number, **OTHERS[rule])
    with pytest.raises(InputError) as caught:
        select_series(tmp_path / "study", tmp_path / "series", RULES)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split("'")[1] for line in lines] == list(OTHERS)


def test_of_a_mixed_study_the_right_series_is_taken(tmp_path: Path, write_crop: Callable[..., np.ndarray]) -> None:
    for number, rule in enumerate(OTHERS, start=1):
        write_crop(tmp_path / str(number), SeriesNumber=number, **OTHERS[rule])
    write_crop(tmp_path / "crop", SeriesNumber=3)
    study = tmp_path / "study"
    study.mkdir()
    (study / "notes.txt").write_text("no DICOM")
    for index, path in enumerate(sorted(tmp_path.glob("*/*.dcm"))):  # all in one folder, without a suffix
        shutil.copy(path, study / f"IM{index}")
    (folder,) = selected(study, tmp_path / "series")
    found = {pydicom.dcmread(path).SOPInstanceUID for path in folder.iterdir()}
    assert found == {pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / "crop").iterdir()}


def test_damaged_files_and_an_empty_folder(tmp_path: Path, write_crop: Callable[..., np.ndarray]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no DICOM series"):
        select_series(tmp_path / "empty", tmp_path / "a", RULES)
    write_crop(tmp_path / "study")
    (tmp_path / "study" / "another.dcm").write_bytes(b"cut off")
    assert "1 damaged DICOM files" in select_series(tmp_path / "study", tmp_path / "b", RULES).damaged[0]
    for path in (tmp_path / "study").iterdir():
        path.write_bytes(b"cut off")
    with pytest.raises(InputError, match="no DICOM series, but 31 damaged DICOM files"):
        select_series(tmp_path / "study", tmp_path / "c", RULES)


def test_files_of_old_scanners_and_of_a_mac(tmp_path: Path, write_crop: Callable[..., np.ndarray]) -> None:
    """As the package reads them: without preamble, and beside hidden files."""
    write_crop(tmp_path / "study")
    for path in sorted((tmp_path / "study").iterdir()):
        path.with_name(f"._{path.name}").write_bytes(b"\0" * 100)
        path.write_bytes(path.read_bytes()[132:])
    (folder,) = selected(tmp_path / "study", tmp_path / "series")
    assert len(list(folder.iterdir())) == 30


def test_no_value_of_a_patient_is_shown(
    tmp_path: Path, write_crop: Callable[..., np.ndarray], caplog: pytest.LogCaptureFixture, recwarn: Any
) -> None:
    """By the selection, whatever is wrong with a series."""
    shown = []
    for number, rule in enumerate(("", *OTHERS)):
        study = tmp_path / f"Secret{number}"
        write_crop(study / "a", SeriesNumber=number, **{**SECRETS, **OTHERS.get(rule, {})})
        write_crop(study / "b", SeriesNumber=9, **{**SECRETS, **OTHERS["modality"]})
        (study / "Secret.dcm").write_bytes((study / "a" / "4.dcm").read_bytes()[:300])
        with caplog.at_level(logging.DEBUG):
            try:
                shown += select_series(study, tmp_path / f"series{number}", RULES).damaged
            except InputError as error:
                shown.append("".join(traceback.format_exception(error)))
    assert len(shown) > len(OTHERS)
    text = "".join([caplog.text, *shown, *(str(warning.message) for warning in recwarn)])
    assert "Secret" not in text.replace(str(tmp_path), "")


def test_a_damaged_series_is_not_merely_left_out(tmp_path: Path, write_crop: Callable[..., np.ndarray]) -> None:
    write_crop(tmp_path / "study" / "a", SeriesNumber=1)
    write_crop(tmp_path / "study" / "b", SeriesNumber=2, **OTHERS["regular grid"])
    write_crop(tmp_path / "study" / "c", SeriesNumber=3, **OTHERS["modality"])
    selection = select_series(tmp_path / "study", tmp_path / "series", RULES)
    assert [folder.name for folder in selection.folder.iterdir()] == ["series_1"]
    (line,) = selection.damaged
    assert line.startswith("series 2 (number 2, MR, 28 images): rule 'regular grid': ")


def test_a_trained_bundle_takes_what_is_like_its_training_images(
    tmp_path: Path, write_crop: Callable[..., np.ndarray]
) -> None:
    """12 thick slices of unknown modality, more than its grid holds."""
    seen = {"shape": {"least": [40, 40, 10], "greatest": [60, 60, 14]}}
    seen["spacing"] = {"least": [0.9, 0.9, 4.0], "greatest": [1.1, 1.1, 5.0]}
    metadata = {
        "network_data_format": {"inputs": {"image": {"modality": "n/a"}}},
        "training": {"fingerprint": seen},
    }
    write_crop(tmp_path / "study", shape=(12, 50, 50), distance=4.5, Modality="XA")
    rules = Rules.of(CONFIG, metadata, **FACTORS)
    assert select_series(tmp_path / "study", tmp_path / "taken", rules).damaged == []
    write_crop(tmp_path / "wide", shape=(12, 90, 90), distance=4.5)
    with pytest.raises(InputError, match="rule 'field of view'"):
        select_series(tmp_path / "wide", tmp_path / "refused", rules)
    found = Rules.of({**CONFIG, "localise": True}, metadata, **FACTORS)
    assert select_series(tmp_path / "wide", tmp_path / "located", found).damaged == []
    write_crop(tmp_path / "scout", shape=(3, 50, 50), distance=4.5)
    with pytest.raises(InputError, match="rule 'field of view'"):
        select_series(tmp_path / "scout", tmp_path / "scouts", found)


# The whole application


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that needs no training: its ITN reads the classes off the intensities, its atlas is two ellipsoids."""
    root = tmp_path_factory.mktemp("bundle") / "bundle"
    shutil.copytree(ROOT / "bundle" / "configs", root / "configs")
    config = root / "configs" / "inference.yaml"
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["itn"] = "$torch.nn.Sequential(torch.nn.Conv3d(1, 3, 1), torch.nn.ReLU(), torch.nn.Conv3d(3, 3, 1))"
    settings["itn_activation"] = None
    settings["stn"]["channels"] = [8, 16]
    settings["refine_iterations"] = 10
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    parser = ConfigParser(settings)
    save_model(
        root / "models" / "model.pt",
        parser.get_parsed_content("network_def"),
        ellipsoids(centred(SIZE, (1.0,) * 3), SIZE),
    )
    return root


def inferred(study: Path, output: Path, bundle: Path) -> nib.Nifti1Image:
    """The segmentation by `run inference`."""
    return nib.load(next(run_inference(bundle, study, output).glob("*/*_seg.nii.gz")))


def errors_of(path: Path) -> list[str]:
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


@pytest.mark.slow
@pytest.mark.monai_deploy
@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian package dicom3tools)")
def test_a_study_becomes_a_segmentation_and_a_page(
    tmp_path: Path,
    bundle: Path,
    write_crop: Callable[..., np.ndarray],
    read_segmentation: Callable[..., np.ndarray],
) -> None:
    shape = (34, 50, 30)
    pixels = picture(ellipsoids(centred(shape, (1.0,) * 3), shape, (2.0, -1.0, 1.0))).transpose(2, 1, 0) + 100
    study = tmp_path / "Secret^Name"
    write_crop(study / "crop", pixels=pixels, SeriesNumber=2, **SECRETS)
    write_crop(study / "scout", shape=(3, 50, 34), SeriesNumber=1, **SECRETS)
    done = run_app(study, tmp_path / "out", bundle)
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == ["series_2_page.dcm", "series_2_seg.dcm"]
    assert [errors_of(file) for file in files] == [[], []]

    expected = inferred(study / "crop", tmp_path / "plain", bundle)
    labels = np.asarray(expected.dataobj).astype(int)
    assert set(np.unique(labels)) == {0, 1, 2}
    for reader in ("highdicom", "dcmqi"):
        found = read_segmentation(files[1], expected.affine, labels.shape, reader)
        np.testing.assert_array_equal(found, labels)

    source = pydicom.dcmread(study / "crop" / "5.dcm")
    for file in files:
        header = pydicom.dcmread(file)
        assert header.StudyInstanceUID == source.StudyInstanceUID
        assert header.PatientID == source.PatientID
    for identifier in ("Secret", source.SeriesInstanceUID, source.StudyInstanceUID):
        assert identifier not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.monai_deploy
def test_a_study_without_a_series_that_suits_is_refused(
    tmp_path: Path, bundle: Path, write_crop: Callable[..., np.ndarray]
) -> None:
    write_crop(tmp_path / "study", **OTHERS["modality"])
    done = run_app(tmp_path / "study", tmp_path / "out", bundle)
    assert done.returncode == 1
    assert "error: no series of the study suits the model" in done.stderr
    assert "rule 'modality': expected MR, found CT" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
@pytest.mark.monai_deploy
def test_what_can_be_segmented_is_and_the_rest_is_named(
    tmp_path: Path, bundle: Path, write_crop: Callable[..., np.ndarray]
) -> None:
    write_crop(tmp_path / "study" / "good", SeriesNumber=1, **SECRETS)
    write_crop(tmp_path / "study" / "constant", pixels=np.full((30, 50, 34), 7), SeriesNumber=2, **SECRETS)
    write_crop(tmp_path / "study" / "gap", SeriesNumber=3, **{**SECRETS, **OTHERS["regular grid"]})
    done = run_app(tmp_path / "study", tmp_path / "out", bundle)
    assert done.returncode == 1
    assert "series_2: " in done.stderr
    assert "the image is constant" in done.stderr
    assert "series 3 (number 3, MR, 28 images): rule 'regular grid'" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Secret" not in done.stdout + done.stderr
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == ["series_1_page.dcm", "series_1_seg.dcm"]


@pytest.mark.slow
@pytest.mark.monai_deploy
@pytest.mark.skipif(not (DATA / "hippocampus_dicom").is_dir(), reason=f"no DICOM series in {DATA} (ATLAS_ISTN_DATA)")
def test_the_shipped_model_gives_the_voxels_of_run_inference(
    tmp_path: Path, read_segmentation: Callable[..., np.ndarray]
) -> None:
    bundle, study = ROOT / "bundle", DATA / "hippocampus_dicom"
    expected = inferred(study, tmp_path / "plain", bundle)
    done = run_app(study, tmp_path / "out", bundle)
    assert done.returncode == 0, done.stderr
    labels = np.asarray(expected.dataobj).astype(int)
    found = read_segmentation(tmp_path / "out" / "series_1_seg.dcm", expected.affine, labels.shape)
    np.testing.assert_array_equal(found, labels)
    for identifier in ("PGBM", "Avasarala", "8701449723783444"):
        assert identifier not in done.stdout + done.stderr


DOCKER = """#!/bin/sh
cp -r "$TMPDIR"/holoscan_tmp* "$CONTEXT"
exit 1
"""
"""Stands for the container engine: keeps what the packager has prepared for it, and fails."""

IMAGES = {"igpu": "image", "dgpu": "image", "cpu": "image"}
SOURCES = {"debian-version": "4.2.0", "wheel-version": "4.2.0", "base-images": IMAGES, "build-images": IMAGES}
"""What the packager would download: the base images of a version of Holoscan."""

AS_IN_THE_CONTAINER = """
import runpy, sys
sys.path[:] = [path for path in sys.path if path != {package!r}]
sys.path.insert(0, {app!r})
sys.argv = ["app.py"]
runpy.run_path({app!r} + "/app.py", run_name="__main__")
"""
"""Runs the application without arguments, and without the package that pip installed."""


@pytest.mark.slow
@pytest.mark.monai_deploy
def test_what_the_packager_puts_into_the_container_is_complete(
    tmp_path: Path, bundle: Path, write_crop: Callable[..., np.ndarray]
) -> None:
    for folder in ("bin", "tmp", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bin" / "docker").write_text(DOCKER)
    (tmp_path / "bin" / "docker").chmod(0o755)
    (tmp_path / "sources.json").write_text(json.dumps({"4.2.0": {"holoscan": SOURCES, "health-probes": {}}}))
    run_in_deploy(
        ["bash", DEPLOY / "package.sh", "atlas-istn:test", "--source", tmp_path / "sources.json"],
        BUNDLE_DIR=bundle,
        ATLAS_ISTN_DEPLOY_BIN=DEPLOY_PYTHON.parent,
        PATH=f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        TMPDIR=tmp_path / "tmp",
        CONTEXT=tmp_path / "context",
    )
    context = tmp_path / "context"
    manifest = json.loads((context / "map" / "app.json").read_text())
    assert manifest["command"] == '["python3", "/opt/holoscan/app/app.py"]'
    assert list(json.loads((context / "map" / "pkg.json").read_text())["models"]) == ["hippocampus_atlas_istn"]
    requirements = (context / "pip" / "requirements.txt").read_text()
    assert "monai-deploy-app-sdk==4.0.0\n" in requirements
    assert "\ntorch>=" in requirements

    write_crop(tmp_path / "study")
    code = AS_IN_THE_CONTAINER.format(package=str(ROOT / "custom"), app=str(context / "app"))
    done = run_in_deploy(
        [DEPLOY_PYTHON, "-c", code],
        HOLOSCAN_INPUT_PATH=tmp_path / "study",
        HOLOSCAN_OUTPUT_PATH=tmp_path / "out",
        HOLOSCAN_MODEL_PATH=context / "models",
    )
    assert done.returncode == 0, done.stderr
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"series_1_page.dcm", "series_1_seg.dcm"}
