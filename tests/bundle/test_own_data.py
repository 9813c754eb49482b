# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The way of a data set of one's own: a plan, a training that makes a bundle of its folder, which runs by itself."""

from __future__ import annotations

import csv
import json
import shutil
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from PIL import Image

from atlas_istn.data.letter_b import generate_letter_b
from atlas_istn.errors import InputError, input_error_behind
from atlas_istn.io.results import find_case_folders, read_case_report
from atlas_istn.models.export import load_network
from atlas_istn.models.pack import pack_bundle
from atlas_istn.models.provenance import check_model_file, save_model
from atlas_istn.plan import plan
from atlas_istn.report import write_report
from atlas_istn.shape.run import Run
from atlas_istn.workflow.ensemble import make_ensemble
from support import ROOT

CONFIGS = ROOT / "bundle" / "configs"
QUICK = {"spatial_size": [32, 32], "spacing": [4.0, 4.0], "refine_iterations": 7, "max_epochs": 1, "batch_size": 2}


def run(config: Path, run_id: str, *more: Path, **settings: object) -> None:
    texts = {key: str(value) for key, value in settings.items()}  # as the command line gives them
    flow = ConfigWorkflow([str(path) for path in (config, *more)], run_id=run_id, logging_file=False, **texts)
    flow.initialize()
    flow.run()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training, with the data set beside it."""
    folder = tmp_path_factory.mktemp("own")
    hook = sys.excepthook  # the workflows replace it
    data = generate_letter_b(folder / "data", num_training=4, num_validation=9, num_test=2, num_corrupt=1)
    plan(str(data.parent), str(folder / "work"), labels="letter=255", bundle_dir=str(ROOT / "bundle"))
    run(CONFIGS / "train.yaml", "training", folder / "work" / "configs" / "data.yaml", device="cpu", **QUICK)
    sys.excepthook = hook
    return folder / "work"


def test_the_bundle_runs_by_itself(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.chdir(tmp_path)  # nothing of the repository is beside it
    run(trained / "configs" / "evaluate.yaml", "evaluate", output_dir=tmp_path / "out", device="cpu")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["cases"], summary["failed"]) == (2, 0)
    assert summary["length_unit"] == "pixels"
    name = sorted(path.name for path in (tmp_path / "out").iterdir() if (path / f"{path.name}.json").exists())[0]
    report = json.loads((tmp_path / "out" / name / f"{name}.json").read_text())
    assert len(report["loss_curve"]) <= 8  # the iterations of the training's own configuration
    segmentation = tmp_path / "out" / name / f"{name}_seg.png"
    pixels = sum(value == 255 for value in Image.open(segmentation).getdata())
    assert report["volumes"] == {"letter": pixels}  # a picture has no pixel size
    assert report["volume_unit"] == "pixels"
    assert set(Image.open(segmentation).getdata()) <= {0, 255}


def test_with_a_pixel_size_all_is_in_millimetres(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    run(trained / "configs" / "evaluate.yaml", "evaluate", output_dir=tmp_path, device="cpu", pixel_size=[1.0, 1.0])
    assert "HD [mm]" in capsys.readouterr().out
    report = read_case_report(find_case_folders(tmp_path)[0])
    assert (report["volume_unit"], report["pixel_size"]) == ("mm²", [1.0, 1.0])
    assert Run.open(tmp_path).unit == "mm"
    write_report(tmp_path, trained.parent / "data", path=tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "HD [mm]" in html
    assert "pixels]" not in html


def test_results_of_an_inference_run_are_scored_as_fresh_ones(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    config, fresh, out = trained / "configs" / "evaluate.yaml", tmp_path / "fresh", tmp_path / "out"
    run(config, "evaluate", output_dir=fresh, device="cpu")
    run(trained / "configs" / "inference.yaml", "inference", output_dir=out, device="cpu")
    stored = {"output_dir": out, "results_dir": out, "device": "cpu", "ckpt_path": "nowhere"}  # no network runs
    run(config, "evaluate", **stored)
    for name in ("metrics.csv", "summary.json"):
        assert (out / name).read_bytes() == (fresh / name).read_bytes()
    shutil.rmtree(find_case_folders(out)[0])
    wrong = {"label_names": {0: "background", 1: "other"}}
    for settings, message in (
        (stored, "1 of 2 cases failed"),
        ({**stored, "evaluate_space": "model"}, "expected native with results_dir"),
        ({**stored, **wrong}, r"expected results with the labels {'other': 255}, found {'letter': 255}"),
    ):
        with pytest.raises(RuntimeError) as caught:
            run(config, "evaluate", **settings)
        assert message in str(input_error_behind(caught.value))


def test_it_says_what_it_is(trained: Path) -> None:
    metadata = json.loads((trained / "configs" / "metadata.json").read_text())
    assert metadata["training"]["sha256"] == check_model_file(trained / "models" / "model.pt")["sha256"]
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "letter"}
    for space in ("model", "native"):
        summary = json.loads((trained / "validation" / space / "summary.json").read_text())
        dice = summary["results"]["refine"]["labels"]["letter"]["dice"]["mean"]
        assert metadata["eval_metrics"][f"dice_letter_{space}"] == pytest.approx(dice, abs=1e-4)
    assert "letter" in (trained / "docs" / "README.md").read_text()
    assert json.loads((trained / "models" / "quality.json").read_text())["cases"] == 9


def test_the_last_validation_is_what_evaluate_gives(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    settings = {"output_dir": tmp_path, "test_list": "validation", "evaluate_space": "model", "device": "cpu"}
    run(trained / "configs" / "evaluate.yaml", "evaluate", **settings)
    found, expected = (
        json.loads((folder / "summary.json").read_text())["results"]["refine"]["mean"]["dice"]["mean"]
        for folder in (tmp_path, trained / "validation" / "model")
    )
    assert found == pytest.approx(expected, abs=1e-6)


def test_probability_maps_are_what_the_labels_come_from(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    scans = trained.parent / "data" / "imagesTs"
    settings = {"dataset_dir": scans, "output_dir": tmp_path, "device": "cpu", "write_probabilities": True}
    run(trained / "configs" / "inference.yaml", "inference", **settings)
    for scan in scans.iterdir():
        folder = tmp_path / scan.stem
        labels = np.asarray(Image.open(folder / f"{scan.stem}_seg.png")).T
        probability = nib.load(folder / f"{scan.stem}_probability_255_letter.nii.gz").get_fdata()
        assert probability.shape == labels.shape
        assert 0 < ((probability > 0.02) & (probability < 0.98)).mean() < 1  # soft, though not everywhere
        assert ((probability > 0.5) == (labels == 255)).mean() > 0.995  # all but what keeps the topology
    assert "255 letter " in (tmp_path / "labels.ctbl").read_text()


def test_other_settings_than_the_model_was_trained_with_are_refused_by_name(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    settings = {"output_dir": tmp_path, "spacing": [3.0, 3.0], "device": "cpu"}
    with pytest.raises(RuntimeError) as caught:
        run(trained / "configs" / "inference.yaml", "inference", **settings)
    error = input_error_behind(caught.value)
    assert isinstance(error, InputError)
    assert [line.split(":")[0].strip() for line in str(error).splitlines()[1:-1]] == ["spacing"]


def test_finished_cases_are_left_as_they_are_by_content_and_settings(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    scans = tmp_path / "scans"
    shutil.copytree(trained.parent / "data" / "imagesTs", scans)
    names = sorted(path.stem for path in scans.iterdir())

    def infer(output: str, **more: object) -> dict[str, bytes]:
        settings = {"dataset_dir": scans, "output_dir": tmp_path / output, "device": "cpu", **more}
        run(trained / "configs" / "inference.yaml", "inference", **settings)
        return {name: (tmp_path / output / name / f"{name}.json").read_bytes() for name in names}

    def rows(output: str) -> list[dict[str, str]]:
        with (tmp_path / output / "summary.csv").open(newline="") as stream:
            return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]

    first = infer("out")
    # As if it had been killed behind the first case.
    shutil.rmtree(tmp_path / "out" / names[1])
    (tmp_path / "out" / "summary.csv").unlink()
    second = infer("out", resume=True)
    assert second[names[0]] == first[names[0]]  # seconds and all
    infer("whole")
    assert rows("out") == rows("whole")
    for name in names:
        assert (tmp_path / "out" / name / f"{name}_seg.png").read_bytes() == (
            tmp_path / "whole" / name / f"{name}_seg.png"
        ).read_bytes()
    # Another image under the same name, and other settings, are done anew.
    shutil.copyfile(scans / f"{names[1]}.png", scans / f"{names[0]}.png")
    third = infer("out", resume=True)
    assert [third[name] == second[name] for name in names[:2]] == [False, True]
    fourth = infer("out", resume=True, refine_iterations=3)
    assert all(fourth[name] != third[name] for name in names)


def test_packed_it_gives_the_same_elsewhere(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    pack_bundle(str(trained), str(tmp_path / "packed.zip"))
    with zipfile.ZipFile(tmp_path / "packed.zip") as archive:
        archive.extractall(tmp_path)
    unpacked = tmp_path / "packed"
    texts = "".join(path.read_text() for path in unpacked.rglob("*.yaml"))
    assert str(trained.parent) not in texts  # nothing of this machine
    assert not (unpacked / "checkpoints").exists()
    monkeypatch.chdir(tmp_path)
    data = {"dataset_dir": trained.parent / "data", "device": "cpu"}
    for root in (trained, unpacked):
        output = tmp_path / root.name
        run(root / "configs" / "inference.yaml", "inference", bundle_root=root, output_dir=output / "out", **data)
    first, second = (sorted((tmp_path / root.name / "out").glob("*/*_seg.png")) for root in (trained, unpacked))
    assert len(first) == 2
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_another_training_goes_on_from_its_own_configuration(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration that training wrote trains the same model again."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    run(trained / "configs" / "train.yaml", "training", output_dir=tmp_path / "again", device="cpu")
    first, second = (
        torch.load(folder / "models" / "model.pt", weights_only=True) for folder in (trained, tmp_path / "again")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def other(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle as another training with the same settings makes it."""
    folder = tmp_path_factory.mktemp("other") / "work"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    model = folder / "models" / "model.pt"
    torch.manual_seed(1)
    state = torch.load(model, weights_only=True)
    save_model({name: v + 0.05 * torch.randn_like(v) if v.ndim > 2 else v for name, v in state.items()}, model)
    return folder


def test_an_ensemble_is_the_mean_of_the_itns_and_the_rest_of_one_member(
    trained: Path, other: Path, tmp_path: Path
) -> None:
    make_ensemble(str(trained), str(other), output_dir=str(tmp_path), atlas_of=str(other), val_list="validation")
    first, second, mean = (
        load_network(root / "configs" / "inference.yaml").eval() for root in (trained, other, tmp_path)
    )
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        each = first.segment(image), second.segment(image)
        torch.testing.assert_close(mean.segment(image), (each[0] + each[1]) / 2)
    assert not torch.allclose(*each)
    expected = {name: value for name, value in second.state_dict().items() if not name.startswith("itn.")}
    assert all(torch.equal(mean.state_dict()[name], value) for name, value in expected.items())
    assert not torch.equal(first.state_dict()["atlas_labels"], second.state_dict()["atlas_labels"])
    metadata = json.loads((tmp_path / "configs" / "metadata.json").read_text())
    sums = [check_model_file(root / "models" / "model.pt")["sha256"] for root in (other, trained)]
    assert metadata["training"]["members"] == sums  # that of the atlas first
    assert metadata["training"]["validation_cases"] == 9
    assert json.loads((tmp_path / "models" / "quality.json").read_text())["cases"] == 9
    with pytest.raises(InputError, match="holds a model already"):
        make_ensemble(str(trained), str(other), output_dir=str(tmp_path))


def test_an_ensemble_of_a_model_with_itself_gives_its_voxels_packed_too(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    make_ensemble(str(trained), str(trained), output_dir=str(tmp_path / "same"))
    pack_bundle(str(tmp_path / "same"), str(tmp_path / "packed.zip"))
    with zipfile.ZipFile(tmp_path / "packed.zip") as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    data = {"dataset_dir": trained.parent / "data", "device": "cpu"}
    results = {}
    for root in (trained, tmp_path / "packed"):
        output = tmp_path / f"out_{root.name}"
        run(root / "configs" / "inference.yaml", "inference", bundle_root=root, output_dir=output, **data)
        results[root] = {path.name: path.read_bytes() for path in output.glob("*/*_seg.png")}
        results[root] |= {path.name: path.read_bytes() for path in output.glob("*/*_itn.png")}
    assert len(results[trained]) == 4
    assert results[trained] == results[tmp_path / "packed"]
    assert json.loads((tmp_path / "packed" / "models" / "quality.json").read_text())["cases"] == 0  # not calibrated


def test_members_with_other_settings_are_refused_by_name(trained: Path, other: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(other, wrong)
    record = json.loads((wrong / "models" / "model.json").read_text())
    record["settings"] |= {"spacing": [3.0, 3.0], "label_names": {"0": "background", "1": "word"}}
    (wrong / "models" / "model.json").write_text(json.dumps(record))
    with pytest.raises(InputError) as caught:
        make_ensemble(str(trained), str(other), str(wrong), output_dir=str(tmp_path / "out"))
    lines = str(caught.value).splitlines()
    assert [line.strip().split(":")[0] for line in lines[1:-1]] == [str(wrong), "label_names", "spacing"]
    with pytest.raises(InputError, match="two or more trainings, found 1"):
        make_ensemble(str(trained), output_dir=str(tmp_path / "out"))
    with pytest.raises(InputError, match=r"expected the folder of a training that is over.*train\.yaml"):
        make_ensemble(str(trained), str(tmp_path), output_dir=str(tmp_path / "out"))
    with pytest.raises(InputError, match="expected one of the members"):
        make_ensemble(str(trained), str(other), output_dir=str(tmp_path / "out"), atlas_of=str(wrong))
    with pytest.raises(InputError, match="is a member, and would be lost"):
        make_ensemble(str(trained), str(other), output_dir=str(other), overwrite=True)
    assert not (tmp_path / "out").exists()
