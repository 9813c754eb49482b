# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The packed bundle behind a real MONAI Label server, asked over HTTP: `pytest -m monai_label`, some minutes.

The server runs in the environment that `deploy/monai_label/setup.sh` makes, or ATLAS_ISTN_LABEL_ENV names. The tests
run in the order of this file: training comes last, since it changes the model that is served.
"""

from __future__ import annotations

import gzip
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
import yaml

from host_runs import LABEL, Server, free_port, make_app, needs_label, run_inference, running, serving, voxels
from support import DATA, ROOT

MODEL = "atlas_istn_hippocampus"
CANARY = b"Canary"  # in the free text of the studies' headers
STUDIES = ("hippocampus_234", "hippocampus_280", "hippocampus_378")  # of the test list, with labels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.monai_label,
    needs_label,
    pytest.mark.skipif(not (DATA / "hippocampus").is_dir(), reason=f"no real data in {DATA}: set ATLAS_ISTN_DATA"),
]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app with the packed bundle of this repository."""
    return make_app(ROOT / "bundle", tmp_path_factory.mktemp("app"), MODEL)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three studies, and two that cannot be segmented."""
    folder = tmp_path_factory.mktemp("studies")
    for name in STUDIES:
        image = nib.load(DATA / "hippocampus" / "imagesTr" / f"{name}.nii.gz")
        for field in ("descrip", "db_name", "aux_file", "intent_name"):
            image.header[field] = CANARY
        nib.save(image, folder / f"{name}.nii.gz")
    good = folder / f"{STUDIES[0]}.nii.gz"
    (folder / "truncated.nii.gz").write_bytes(good.read_bytes()[:2000])
    image = nib.load(good)
    nib.save(nib.Nifti1Image(np.full(image.shape, 7, np.float32), image.affine), folder / "constant.nii.gz")
    return folder


@pytest.fixture(scope="module")
def server(app: Path, studies: Path) -> Iterator[Server]:
    with serving(app, str(studies), MODEL) as running_server:
        yield running_server


def bundle_inference(dataset_dir: Path, output_dir: Path) -> Path:
    """`python -m monai.bundle run inference` with the shipped weights."""
    return run_inference(ROOT / "bundle", dataset_dir, output_dir)


@pytest.fixture(scope="module")
def answers(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The server's segmentations, asked for one by one."""
    folder = tmp_path_factory.mktemp("answers")
    return {name: voxels(server.segment(name, folder)) for name in STUDIES}


def test_info_lists_the_model_with_its_options(server: Server) -> None:
    info = server.ask("GET", "info/").json()
    model = info["models"][MODEL]
    assert model["labels"] == {"anterior": 1, "posterior": 2}
    options = {name: value for name, value in model["config"].items() if name.startswith("refine")}
    config = yaml.safe_load((ROOT / "bundle" / "configs" / "inference.yaml").read_text())
    own = {"refine_iterations": config["refine_iterations"], "refine_mode": config["refine_mode"]}
    assert options == {**own, "refine_lambda": config["refine_weights"]["lambda"]}
    assert MODEL in info["trainers"]


def test_the_answer_is_that_of_the_bundle_on_the_grid_of_the_study(
    server: Server, answers: dict[str, np.ndarray], studies: Path, tmp_path: Path
) -> None:
    (tmp_path / "studies").mkdir()
    for name in STUDIES:
        shutil.copy(studies / f"{name}.nii.gz", tmp_path / "studies")
    output = bundle_inference(tmp_path / "studies", tmp_path / "output")
    for name in STUDIES:
        expected = nib.load(output / name / f"{name}_seg.nii.gz")
        np.testing.assert_array_equal(answers[name], voxels(expected))
        study = nib.load(studies / f"{name}.nii.gz")
        assert answers[name].shape == study.shape
    answer = server.segment(STUDIES[0], tmp_path / "output", refine_iterations=0)
    # NIfTI holds float32, and ITK writes it by way of origin, spacing and direction.
    np.testing.assert_allclose(answer.affine, nib.load(studies / f"{STUDIES[0]}.nii.gz").affine, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"refine_iterations": "0"}, {"refine_lambda": "30"}, {"refine_mode": "weights", "refine_iterations": 3}],
    ids=lambda options: ",".join(options),
)
def test_options_change_the_result(
    server: Server, answers: dict[str, np.ndarray], tmp_path: Path, options: dict[str, Any]
) -> None:
    name = STUDIES[0]
    other = voxels(server.segment(name, tmp_path, **options))
    assert set(np.unique(other)) == {0, 1, 2}
    assert (other != answers[name]).any()


def test_requests_in_parallel_get_the_answers_of_single_ones(
    server: Server, answers: dict[str, np.ndarray], tmp_path: Path
) -> None:
    requested = [STUDIES[i] for i in (2, 0, 1, 2)]
    options = [{}, {}, {"refine_iterations": 0}, {}]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda name, chosen: server.infer(name, **chosen), requested, options))
    for number, (name, chosen, result) in enumerate(zip(requested, options, results, strict=True)):
        assert result.status_code == 200, result.text
        path = tmp_path / f"{number}.nii.gz"
        path.write_bytes(result.content)
        same = (voxels(nib.load(path)) == answers[name]).all()
        assert same == (not chosen), (number, name)


@pytest.mark.parametrize(
    ("study", "options", "reason"),
    [
        ("truncated", {}, "the image cannot be read"),
        ("constant", {}, "the image is constant"),
        ("missing", {}, "missing: there is no such study"),
        (STUDIES[0], {"refine_mode": "other"}, "refine_mode: expected field or weights, found 'other'"),
        (STUDIES[0], {"refine_iterations": "many"}, "refine_iterations: expected a whole number from 0, found 'many'"),
        (STUDIES[0], {"refine_lambda": -1}, "refine_lambda: expected a number from 0, found -1"),
    ],
)
def test_a_bad_request_fails_alone(
    server: Server, answers: dict[str, np.ndarray], tmp_path: Path, study: str, options: dict[str, Any], reason: str
) -> None:
    answer = server.infer(study, **options)
    assert answer.status_code >= 400
    assert reason in answer.json()["detail"]
    log = (server.weights.parents[3] / "logs" / "app.log").read_text()
    assert answer.json()["detail"] in log or answer.status_code == 404
    name = STUDIES[1]
    if study == "truncated":  # a whole segmentation once, since it takes its time
        np.testing.assert_array_equal(voxels(server.segment(name, tmp_path)), answers[name])
    else:
        assert server.infer(name, refine_iterations=0).status_code == 200


# DICOMweb.


def multipart(files: list[bytes]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a STOW request."""
    start = b"--part\r\nContent-Type: application/dicom\r\n\r\n"
    body = b"".join(start + file + b"\r\n" for file in files) + b"--part--\r\n"
    return body, {"Content-Type": 'multipart/related; type="application/dicom"; boundary=part'}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a DICOMweb store that holds one real series."""
    orthanc = shutil.which("Orthanc")
    series = DATA / "hippocampus_dicom" / "Study1"
    if orthanc is None or not series.is_dir():
        pytest.skip("needs Debian's orthanc and orthanc-dicomweb, and the real DICOM series")
    folder, port = tmp_path_factory.mktemp("orthanc"), free_port()
    address = f"http://127.0.0.1:{port}/dicom-web"
    settings = {"ORTHANC_STORAGE": str(folder), "ORTHANC_PORT": str(port)}
    command = [orthanc, str(LABEL / "orthanc.json")]
    with running(command, f"{address}/studies", folder / "orthanc.log", **settings):
        body, headers = multipart([path.read_bytes() for path in sorted(series.glob("*.dcm"))])
        answer = requests.post(f"{address}/studies", data=body, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        yield address


def found(store: str, modality: str) -> list[dict[str, str]]:
    """UIDs of the series of a modality."""
    query = {"Modality": modality}
    series = requests.get(f"{store}/series", params=query, headers={"Accept": "application/dicom+json"}, timeout=60)
    return [
        {"study": tags["0020000D"]["Value"][0], "series": tags["0020000E"]["Value"][0]} for tags in series.json() or []
    ]


SEGMENTS = [
    {
        "labelID": number,
        "SegmentLabel": name,
        "SegmentDescription": name,
        "SegmentAlgorithmType": "AUTOMATIC",
        "SegmentAlgorithmName": "Atlas-ISTN",
        "SegmentedPropertyCategoryCodeSequence": {
            "CodeValue": "123037004",
            "CodingSchemeDesignator": "SCT",
            "CodeMeaning": "Anatomical Structure",
        },
        "SegmentedPropertyTypeCodeSequence": {
            "CodeValue": "5366008",
            "CodingSchemeDesignator": "SCT",
            "CodeMeaning": "Hippocampus",
        },
        "recommendedDisplayRGBValue": [255, 128 * (number - 1), 0],
    }
    for number, name in enumerate(("anterior", "posterior"), start=1)
]


def test_a_series_of_a_dicomweb_store_gets_its_segmentation_stored(app: Path, store: str, tmp_path: Path) -> None:
    (image,) = found(store, "MR")
    with serving(app, store, MODEL) as server:
        answer = server.segment(image["series"], tmp_path)
        info = {"label_info": [{"name": s["SegmentLabel"], "segmentAttribute": s} for s in SEGMENTS]}
        label = Path(answer.get_filename())
        with label.open("rb") as file:
            stored = server.ask(
                "PUT",
                "datastore/label",
                params={"image": image["series"], "tag": "final"},
                data={"params": json.dumps(info)},
                files={"label": (label.name, file)},
            )
        assert stored.status_code == 200, stored.text

    series = DATA / "hippocampus_dicom" / "Study1"
    expected = nib.load(bundle_inference(series, tmp_path / "output") / "Study1" / "Study1_seg.nii.gz")
    ours, theirs = nib.as_closest_canonical(expected), nib.as_closest_canonical(answer)
    np.testing.assert_allclose(theirs.affine, ours.affine, atol=1e-3)
    np.testing.assert_array_equal(voxels(theirs), voxels(ours))

    (result,) = found(store, "SEG")
    assert result["study"] == image["study"]
    address = store.replace("/dicom-web", "/tools/find")
    query = {"Level": "Instance", "Query": {"SeriesInstanceUID": result["series"]}}
    (identifier,) = requests.post(address, json=query, timeout=60).json()
    path = tmp_path / "seg.dcm"
    path.write_bytes(requests.get(store.replace("/dicom-web", f"/instances/{identifier}/file"), timeout=60).content)
    segmentation = pydicom.dcmread(path)
    assert [segment.SegmentLabel for segment in segmentation.SegmentSequence] == ["anterior", "posterior"]
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == image["series"]
    frames = segmentation.pixel_array
    for number in (1, 2):
        own = [
            frame
            for frame, groups in zip(frames, segmentation.PerFrameFunctionalGroupsSequence, strict=True)
            if groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number
        ]
        assert sum(int(frame.sum()) for frame in own) == (voxels(expected) == number).sum()


# Training.


def test_a_client_trains_the_model_and_the_server_serves_the_new_one(
    server: Server, answers: dict[str, np.ndarray], tmp_path: Path
) -> None:
    before = server.weights.read_bytes()
    for name in STUDIES:
        with (DATA / "hippocampus" / "labelsTr" / f"{name}.nii.gz").open("rb") as label:
            query = {"image": name, "tag": "final"}
            saved = server.ask("PUT", "datastore/label", params=query, files={"label": (f"{name}.nii.gz", label)})
        assert saved.status_code == 200, saved.text
    request = {"device": "cpu", "max_epochs": 1, "val_split": 0.34}
    assert server.ask("POST", f"train/{MODEL}", json=request).status_code == 200
    end = time.monotonic() + 900
    while (task := server.ask("GET", "train/").json())["status"] not in ("DONE", "ERROR"):
        assert time.monotonic() < end, task["details"]
        time.sleep(3)
    assert task["status"] == "DONE", task["details"]
    assert server.weights.read_bytes() != before
    trained, shipped = voxels(server.segment(STUDIES[0], tmp_path)), answers[STUDIES[0]]
    assert (trained != shipped).any()
    # One epoch of two studies at a low learning rate: a wrong atlas or lost weights would leave far less.
    common = ((trained > 0) & (shipped > 0)).sum()
    assert 2 * common / ((trained > 0).sum() + (shipped > 0).sum()) > 0.9


def test_no_free_text_of_a_header_is_shown(server: Server, answers: dict[str, np.ndarray], tmp_path: Path) -> None:
    """By what the server has logged so far, and in an answer."""
    answer = Path(server.segment(STUDIES[0], tmp_path).get_filename())
    logs = (server.weights.parents[3] / "logs").iterdir()
    servers = server.weights.parents[4].glob("server_*.log")
    for text in (gzip.decompress(answer.read_bytes()), *(path.read_bytes() for path in (*logs, *servers))):
        assert CANARY not in text


def test_memory_stays_bounded(server: Server) -> None:
    """PyTorch, ITK and MONAI Label take most of it; a request that kept its tensors would add up."""
    assert server.peak_memory() < 4
