# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""A small model, scans of what it knows, and runs of the bundle on them."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigWorkflow

from atlas_istn.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))
from inference_runs import centred, ellipsoids, picture, save_model  # noqa: E402
from support import CASES, DATA, write_nifti  # noqa: E402

__all__ = [
    "AFFINE",
    "CASES",
    "DATA",
    "LABELLED",
    "ROOT",
    "command",
    "evaluate",
    "infer",
    "labelled",
    "model_in",
    "save",
    "scan",
    "train",
    "write_nifti",
]

CONFIGS = ROOT / "bundle" / "configs"
SIZE = (24, 32, 24)
SHAPE = (20, 28, 20)
AFFINE = centred(SHAPE, (1.0, 1.0, 1.0))
SOLID: dict[str, Any] = {
    "spatial_size": list(SIZE),
    "spacing": [1.0, 1.0, 1.0],
    "itn": "$torch.nn.Sequential(torch.nn.Conv3d(1, 3, 1), torch.nn.ReLU(), torch.nn.Conv3d(3, 3, 1))",
    "itn_activation": None,
    "stn#channels": [8, 16],
    "refine_iterations": 1,
    "device": "cpu",
}
LEARNT: dict[str, Any] = {
    "bundle_root": str(ROOT / "bundle"),
    "spatial_size": list(SIZE),
    "spacing": [1.0, 1.0, 1.0],
    "label_names": {0: "background", 1: "large", 2: "small"},
    "label_values": [0, 1, 2],
    "itn": {
        "_target_": "atlas_istn.networks.UNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 3,
        "channels": [4, 8],
    },
    "stn#channels": [4, 8],
    "batch_size": 2,
    "max_epochs": 1,
    "val_interval": 1,
    "refine_iterations": 1,
    "final_atlas_rounds": 0,
    "device": "cpu",
}


def scan() -> np.ndarray:
    """Voxels of a scan."""
    return picture(ellipsoids(AFFINE, SHAPE, (1.0, -0.5, 0.5)))


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """Write a NIfTI file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def labelled(folder: Path) -> Path:
    """A data set of four labelled scans: two to train on, one each to validate and to test."""
    for number in range(4):
        classes = ellipsoids(AFFINE, SHAPE, (0.5 * number, -0.5, 0.5))
        save(folder / "images" / f"s{number}.nii.gz", picture(classes, number))
        save(folder / "labels" / f"s{number}.nii.gz", classes)
    entries = [{"image": f"images/s{n}.nii.gz", "label": f"labels/s{n}.nii.gz"} for n in range(4)]
    lists = {"training": entries[:2], "validation": entries[2:3], "test": entries[2:]}
    (folder / "dataset.json").write_text(json.dumps(lists))
    return folder


LABELLED = ("labels/s3.nii.gz", "s3", "out/s2/s2_seg.nii.gz")
"""A label of the test list, the name of its case, and what the other case leaves."""


@functools.cache
def _model(folder: Path) -> Path:
    torch.manual_seed(0)
    flow = _workflow("inference", ["inference.yaml"], SOLID)
    network = flow.parser.get_parsed_content("network")
    return save_model(folder / "model.pt", network, ellipsoids(centred(SIZE, (1, 1, 1)), SIZE))


def model_in(folder: Path) -> Path:
    """The model's file, made once beside the folders of all rows."""
    return _model(folder.parent)


def _workflow(run: str, files: Sequence[str], settings: dict[str, Any]) -> ConfigWorkflow:
    paths = [str(CONFIGS / file) for file in files]
    kind = "train" if run == "training" else "infer"
    flow = ConfigWorkflow(paths, run_id=run, workflow_type=kind, logging_file=False, **settings)
    flow.initialize()
    return flow


def _run(run: str, files: Sequence[str], settings: dict[str, Any]) -> None:
    flow = _workflow(run, files, settings)
    flow.run()
    flow.finalize()


def infer(folder: Path, data: Path | None = None, **settings: Any) -> None:
    """Run inference of the small model; without a data set on the folder scans."""
    places = {"dataset_dir": str(data or folder / "scans"), "output_dir": str(folder / "out")}
    _run("inference", ["inference.yaml"], {**SOLID, **places, "ckpt_path": str(model_in(folder)), **settings})


def evaluate(folder: Path, data: Path | None = None, **settings: Any) -> None:
    """Run an evaluation of the small model; without a data set on the folder data."""
    places = {"dataset_dir": str(data or folder / "data"), "output_dir": str(folder / "out")}
    files = ["inference.yaml", "parts/evaluate.yaml"]
    _run("evaluate", files, {**SOLID, **places, "ckpt_path": str(model_in(folder)), **settings})


def train(folder: Path, data: Path | None = None, **settings: Any) -> None:
    """Train for an epoch; without a data set on the folder data."""
    places = {"dataset_dir": str(data or folder / "data"), "output_dir": str(folder / "out")}
    _run("training", ["train.yaml"], {**LEARNT, **places, **settings})


def command(*arguments: object) -> None:
    """Run a command of `python -m atlas_istn`."""
    sys.argv = ["atlas_istn", *map(str, arguments)]
    main()


def copy_case(name: str, folder: Path) -> Path:
    """One of the inputs that once failed, where it may be changed."""
    target = folder / "case"
    shutil.copytree(CASES / name, target, symlinks=True)
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755)
    return target
