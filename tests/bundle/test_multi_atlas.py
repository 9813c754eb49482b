# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""`run segmentation` and `run evaluate` by atlases, through the bundle's configurations."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow

from atlas_istn.errors import input_error_behind
from atlas_istn.report import write_report
from inference_runs import centred, ellipsoids, picture
from support import ROOT, write_nifti

CONFIGS = ROOT / "bundle" / "configs"


@pytest.fixture(autouse=True)
def _excepthook(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workflows replace it; pytest should find its own again."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def save(
    folder: Path, name: str, affine: np.ndarray, shape: tuple[int, ...], shift: tuple[float, ...]
) -> dict[str, str]:
    classes = ellipsoids(affine, shape, shift)
    files = {"image": f"images/{name}.nii", "label": f"labels/{name}.nii"}
    for path, voxels in zip(files.values(), (picture(classes), classes), strict=True):
        (folder / path).parent.mkdir(exist_ok=True)
        write_nifti(folder / path, voxels, affine)
    return files


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three atlases, one of them with other axes and one with other voxels, and a target on a grid of its own."""
    plain = centred((20, 24, 20), (1.0, 1.0, 1.0))
    turned = plain @ np.diag([-1.0, 1.0, -1.0, 1.0])
    turned[:3, 3] = -turned[:3, :3] @ np.array([9.5, 11.5, 9.5])
    atlases = [
        save(tmp_path, "plain", plain, (20, 24, 20), (0.0, 0.0, 0.0)),
        save(tmp_path, "turned", turned, (20, 24, 20), (1.0, -0.5, 0.5)),
        save(tmp_path, "fine", centred((26, 30, 26), (0.8, 0.8, 0.8)), (26, 30, 26), (-1.0, 0.5, 0.0)),
    ]
    target = save(tmp_path, "target", centred((22, 25, 16), (1.0, 1.0, 1.2)), (22, 25, 16), (0.5, 0.5, -0.5))
    (tmp_path / "dataset.json").write_text(json.dumps({"training": atlases, "test": [target]}))
    return tmp_path


def prepare(
    run_id: str, data: Path, files: tuple[str, ...] = (), over: tuple[str, ...] = (), **settings: Any
) -> ConfigWorkflow:
    names = ("inference", *files, "data/hippocampus", "multi_atlas", *over)
    stack = [str(CONFIGS / f"{name}.yaml") for name in names]
    small = {
        "bundle_root": str(CONFIGS.parent),
        "dataset_dir": str(data),
        "output_dir": str(data / "out"),
        "spatial_size": [24, 24, 24],
        "device": "cpu",
    } | ({} if over else {"fusion#patch_radius": 1})
    workflow = ConfigWorkflow(stack, workflow_type="infer", run_id=run_id, logging_file=False, **small | settings)
    workflow.initialize()
    return workflow


def test_images_are_segmented_in_their_own_space_and_scored(data: Path) -> None:
    prepare("segmentation", data, write_atlas_maps=True).run()
    out = data / "out" / "target"
    image, found = nib.load(data / "images/target.nii"), nib.load(out / "target_seg.nii.gz")
    assert found.shape == image.shape
    np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)
    report = json.loads((out / "target.json").read_text())
    assert [note["atlas"] for note in report["atlases"]] == ["fine", "plain", "turned"]
    assert all(note["ncc"] > 0.8 and note["dice"] > 0.8 for note in report["atlases"])
    assert report["warnings"] == []
    [row] = csv.DictReader((data / "out" / "summary.csv").open())
    assert row["case"] == "target"
    truth, labels = np.asarray(nib.load(data / "labels/target.nii").dataobj), np.asarray(found.dataobj)
    for value in (1, 2):
        overlap = 2 * ((truth == value) & (labels == value)).sum() / ((truth == value).sum() + (labels == value).sum())
        assert overlap > 0.85

    maps = {name: nib.load(out / f"target_{name}.nii.gz") for name in ("agreement", "winner", "atlas_1", "atlas_3")}
    assert {found.shape for found in maps.values()} == {image.shape}
    agreement, winner = (np.asarray(maps[name].dataobj).round(3) for name in ("agreement", "winner"))
    assert agreement[0, 0, 0] == 1
    assert set(np.unique(winner)) == {0, 1, 2, 3}
    assert not winner[agreement == 1].any()
    write_report(data / "out", data)
    assert "the atlas that weighs most" in (data / "out" / "report.html").read_text(encoding="utf-8")

    before, again = (out / "target.json").stat().st_mtime_ns, {"resume": True, "write_atlas_maps": True}
    prepare("segmentation", data, **again).run()
    assert (out / "target.json").stat().st_mtime_ns == before
    label = nib.load(data / "labels/fine.nii")
    write_nifti(data / "labels/fine.nii", np.roll(np.asarray(label.dataobj), 1, axis=0), label.affine)
    prepare("segmentation", data, **again).run()
    assert (out / "target.json").stat().st_mtime_ns > before

    cache = data / "cache"
    kept: dict[str, Any] = {
        "atlas_cache": str(cache),
        "deformable_registration": None,
        "output_dir": str(data / "more"),
    }
    prepare("segmentation", data, **kept).run()
    [file] = cache.iterdir()
    written = file.stat().st_mtime_ns
    prepare("segmentation", data, **kept, **{"fusion#search_radius": 0}).run()
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [written]
    prepare("segmentation", data, **kept, **{"affine_registration#transformation#rate": 0.01}).run()
    assert len(list(cache.iterdir())) == 2

    prepare("evaluate", data, ("evaluate",), output_dir=str(data / "scores"), deformable_registration=None).run()
    rows = list(csv.DictReader((data / "scores" / "metrics.csv").open()))
    assert {row["result"] for row in rows} == {"fused"}
    assert min(float(row["dice"]) for row in rows) > 0.8


def test_a_refinement_compares_what_the_network_of_a_model_sees(data: Path) -> None:
    itn: dict[str, Any] = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3}
    itn |= {"channels": [2, 4], "strides": [2]}
    weights = ConfigParser({"itn": itn}).get_parsed_content("itn").state_dict()
    torch.save({f"itn.{name}": value for name, value in weights.items()}, data / "model.pt")
    settings = {"itn": itn, "ckpt_path": str(data / "model.pt"), "deformable_registration": None}
    settings |= {"atlas_refinement#coarse": {2: 3}, "itn_activation": {"_target_": "torch.nn.Softmax", "dim": 1}}
    workflow = prepare("segmentation", data, (), ("multi_atlas_refine",), **settings)
    workflow.run()
    inferer = workflow.parser.get_parsed_content("inferer")
    assert inferer.label_weight == 3.0
    probabilities = inferer.segmenter(torch.rand(2, 1, 24, 24, 24), ["", ""])
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2, 24, 24, 24))
    assert (data / "out" / "target" / "target_seg.nii.gz").is_file()

    torch.save({"itn.other.weight": torch.zeros(1)}, data / "model.pt")
    with pytest.raises(RuntimeError) as caught:
        prepare("segmentation", data, (), ("multi_atlas_refine",), **settings).run()
    assert "another network" in str(input_error_behind(caught.value))


def fold(folder: Path, data: Path, number: int, *trained: str) -> str:
    """The folder of a training of a cross-validation: what of its configurations is read, and a model."""
    itn: dict[str, Any] = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3}
    itn |= {"channels": [2, 4], "strides": [2]}
    names = {0: "background", 1: "anterior", 2: "posterior"}
    network = {"_target_": "atlas_istn.networks.AtlasISTN", "itn": "@itn", "stn": None, "num_classes": 3}
    loader = {"_target_": "atlas_istn.models.loading.ModelLoader", "network": "@network"}
    inference = {"spatial_size": [24, 24, 24], "spacing": [1.0, 1.0, 1.0], "label_names": names, "itn": itn}
    inference |= {"network": network | {"spatial_size": "@spatial_size"}}
    inference |= {"loader": loader | {"path": "$@bundle_root + '/models/model.pt'"}}
    root = folder / f"fold_{number}"
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    (root / "configs" / "inference.yaml").write_text(yaml.safe_dump(inference))
    entries = json.loads((data / "dataset.json").read_text())["training"]
    mine = [entry for entry in entries if Path(entry["image"]).stem in trained]
    (root / "dataset.json").write_text(json.dumps({"root": str(data), "mine": mine}))
    training = {"dataset_dir": str(data), "train_list": "mine", "data_list_file": str(root / "dataset.json")}
    (root / "configs" / "train.yaml").write_text(yaml.safe_dump(training))
    weights = ConfigParser(inference).get_parsed_content("network").state_dict()
    torch.save(weights, root / "models" / "model.pt")
    return str(root)


def test_atlases_are_seen_by_the_folds_that_were_not_trained_with_them(data: Path, tmp_path: Path) -> None:
    folds = [fold(tmp_path, data, 0, "plain", "turned"), fold(tmp_path, data, 1, "fine")]
    settings = {"deformable_registration": None, "atlas_refinement#coarse": {2: 3}, "segmenter_folds": folds}
    workflow = prepare("segmentation", data, (), ("multi_atlas_refine",), **settings)
    workflow.run()
    segmenter = workflow.parser.get_parsed_content("segmenter")
    sources = workflow.parser.get_parsed_content("network").sources
    image = torch.rand(1, 1, 24, 24, 24)
    seen = [segmenter(image, [source]) for source in ("", *sources)]
    first, second = (part.segment(image).clamp(0, 1) for part in segmenter.folds)
    expected = [(first + second) / 2, first, second, second]  # new; fine, plain, turned
    for one, other in zip(seen, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)

    with pytest.raises(RuntimeError) as caught:
        prepare("segmentation", data, (), ("multi_atlas_refine",), **settings | {"segmenter_folds": folds[:1]}).run()
    assert "fold_0 was trained with" in str(input_error_behind(caught.value))


def test_atlases_that_cannot_be_used_are_all_named_and_one_alone_is_told(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"deformable_registration": None}
    label = nib.load(data / "labels/turned.nii")
    front = np.minimum(np.asarray(label.dataobj), 1)
    write_nifti(data / "labels/turned.nii", front, label.affine)
    prepare("segmentation", data, atlases="1", **settings).run()
    report = json.loads((data / "out" / "target" / "target.json").read_text())
    assert report["warnings"] == ["one atlas alone: there is nothing to fuse"]
    assert "atlas turned has no posterior, which other atlases have" in caplog.text

    prepare("segmentation", data, test_list="training", output_dir=str(data / "own"), **settings).run()
    report = json.loads((data / "own" / "fine" / "fine.json").read_text())
    assert report["warnings"] == ["the atlas fine is this very image: leave it out to judge the result"]

    for name, value in (("plain", 0), ("fine", 9)):
        path = data / "labels" / f"{name}.nii"
        label = nib.load(path)
        write_nifti(path, np.full(label.shape, value, dtype=np.uint8), label.affine)
    with pytest.raises(RuntimeError) as caught:
        prepare("segmentation", data, **settings).run()
    message = str(input_error_behind(caught.value))
    assert "2 of 3 atlases cannot be used" in message
    assert "plain: " in message
    assert "fine: " in message


def test_a_registration_that_is_not_there_is_refused(data: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        prepare("segmentation", data, atlas_registration=str(data / "nothing")).run()
    assert "registration.yaml: no such file" in str(input_error_behind(caught.value))


def test_a_learned_atlas_of_another_grid_is_refused(data: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        prepare("segmentation", data, atlas_model=str(CONFIGS.parent)).run()
    assert "trained with spatial_size [48, 64, 48], here it is [24, 24, 24]" in str(input_error_behind(caught.value))


@pytest.mark.parametrize(
    ("kind", "small"),
    [
        ("similarity", {"similarity_patch": [5, 5, 5], "fusion_network#channels": [2, 3, 4]}),
        ("vote_net", {"fusion_network#channels": [4, 4]}),
    ],
)
def test_a_network_that_fuses_is_trained_and_votes(data: Path, kind: str, small: dict[str, Any]) -> None:
    """Each atlas is a target of the others in turn; resumed, the training goes on from its checkpoint."""
    small |= {"deformable_registration": None}
    short: dict[str, Any] = {"pairs_per_epoch": 4, "val_list": "test", "output_dir": str(data / "trained")}
    short |= {"episodes_per_pair": 6, "episode_likeness": [0.8, 0.6]} if kind == "similarity" else {}
    for epochs, resume in ((1, False), (2, True)):
        prepare("training", data, over=(kind, "train_fusion"), max_epochs=epochs, resume=resume, **small, **short).run()
    assert [path.name for path in (data / "trained" / "checkpoints").glob("*.pt")] == ["checkpoint_2.pt"]
    model = data / "trained" / "models" / "model.pt"
    prepare("segmentation", data, over=(kind,), fusion_path=str(model), **small).run()
    assert (data / "out" / "target" / "target_seg.nii.gz").is_file()

    with pytest.raises(RuntimeError) as caught:
        prepare("segmentation", data, over=(kind,), output_dir=str(data / "none"), **small).run()
    assert "fusion_path: expected" in str(input_error_behind(caught.value))


def test_packed_atlases_segment_without_their_data_as_hosts_run_a_bundle(data: Path, tmp_path: Path) -> None:
    """The same as with the data: by the bundle itself, and by the parts that MONAI Label takes of it."""
    quick: dict[str, Any] = {"deformable_registration": None}
    prepare("segmentation", data, **quick).run()
    bundle = tmp_path / "bundle"
    prepare("pack_atlases", data, **quick | {"output_dir": str(bundle)}).run()
    with pytest.raises(RuntimeError) as caught:
        prepare("pack_atlases", data, **quick | {"output_dir": str(bundle)}).run()
    assert "holds a model already" in str(input_error_behind(caught.value))
    shutil.rmtree(data / "labels")
    expected = np.asarray(nib.load(data / "out" / "target" / "target_seg.nii.gz").dataobj)

    config = str(bundle / "configs" / "inference.yaml")
    settings = {"output_dir": str(data / "again"), "dataset_dir": str(data)}
    run = ConfigWorkflow(config, workflow_type="infer", run_id="inference", logging_file=False, **settings)
    run.initialize()
    run.run()
    found = np.asarray(nib.load(data / "again" / "target" / "target_seg.nii.gz").dataobj)
    np.testing.assert_array_equal(found, expected)
    report = json.loads((data / "again" / "target" / "target.json").read_text())
    assert [note["atlas"] for note in report["atlases"]] == ["fine", "plain", "turned"]

    parser = ConfigParser()
    parser.read_config(config)
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    item = parser.get_parsed_content("preprocessing")({"image": str(data / "images" / "target.nii")})
    item["pred"] = parser.get_parsed_content("inferer")(item["image"][None], network)[0]
    item = parser.get_parsed_content("postprocessing")(item)
    np.testing.assert_array_equal(np.asarray(item["pred"][0]), expected)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert channels == {"0": "background", "1": "anterior", "2": "posterior"}
