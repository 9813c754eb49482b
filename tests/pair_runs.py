# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""A tiny data set of pairs, and how tests run the workflows of pairs."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow

from support import ROOT

PAIR = ROOT / "bundle" / "configs" / "pair"
QUICK = {
    "device": "cpu",
    "max_epochs": 2,
    "batch_size": 2,
    "refine_iterations": 4,
    "val_interval": 1,
}


def write_pairs(folder: Path, dim: int, count: int = 4, spacing: float = 1.0) -> Path:
    """Write ellipses that lie here and there, with their labels, and lists of pairs as Learn2Reg has them."""
    shape = (28, 24, 20)[:dim]
    random = np.random.default_rng(0)
    affine = np.diag([spacing] * dim + [1.0] * (4 - dim))
    images = []
    for number in range(count + 1):
        centre = np.array(shape) / 2 + random.uniform(-2, 2, dim)
        radii = np.array(shape) / 4 + random.uniform(-1, 1, dim)
        places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
        mask = (((places - centre) / radii) ** 2).sum(axis=-1) < 1
        values = 100.0 * mask + random.normal(0, 3, shape) + 20 * (places[..., 0] > shape[0] / 2)
        for kind, content in (("images", values.astype(np.float32)), ("labels", mask.astype(np.uint8))):
            (folder / f"{kind}Tr").mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(content, affine), folder / f"{kind}Tr" / f"case_{number}.nii.gz")
        images.append(f"./imagesTr/case_{number}.nii.gz")
    pairs = [{"fixed": images[0], "moving": image} for image in images[1:]]
    lists = {
        "training": [{"image": image, "label": image.replace("images", "labels")} for image in images],
        "training_paired_images": pairs,
        "registration_val": pairs[:2],
        "registration_test": pairs[-2:],
    }
    (folder / "dataset.json").write_text(json.dumps(lists))
    return folder


def write_config(path: Path, dim: int, **settings: object) -> Path:
    """Write a data configuration for `write_pairs`; JSON is YAML."""
    shape = [32, 24, 24][:dim]
    path.write_text(json.dumps({"spatial_size": shape, "spacing": [1.0] * dim, **settings}))
    return path


def run(run_id: str, *configs: Path, **settings: object) -> ConfigWorkflow:
    """Run a workflow of stacked configurations, with settings as the command line gives them."""
    texts = {key: str(value) for key, value in settings.items()}
    flow = ConfigWorkflow([str(path) for path in configs], run_id=run_id, logging_file=False, **texts)
    flow.initialize()
    flow.run()
    return flow
