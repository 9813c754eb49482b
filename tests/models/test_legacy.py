# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""A bundle that was packed with version 0.5.0 carries configurations with old names: they do what the new ones do."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from atlas_istn.models.legacy import MOVED, RESHAPED
from inference_runs import centred, ellipsoids, picture, save_model
from support import ROOT

OLD = Path(__file__).with_name("bundle_0.5.0") / "inference.yaml"
NEW = ROOT / "bundle" / "configs" / "inference.yaml"
SIZE = (24, 32, 24)
SETTINGS: dict[str, Any] = {
    "spatial_size": list(SIZE),
    "itn": "$torch.nn.Sequential(torch.nn.Conv3d(1, 3, 1), torch.nn.ReLU(), torch.nn.Conv3d(3, 3, 1))",
    "itn_activation": None,
    "stn#channels": [8, 16],
    # as it was then
    "stn#norm": ["group", {"num_groups": 4}],
    "stn#coarse_heads": False,
    "network_def#stn_passes": 1,
    "refine_iterations": 12,
    "refine_stiff": {"lambda": 0.2, "fraction": 0.5},
    "refine_trust": None,
    "write_uncertainty": True,
    "ensemble": 2,
    "device": "$torch.device('cpu')",
}


@pytest.mark.parametrize("module", list(MOVED))
def test_an_old_module_has_its_names(module: str) -> None:
    old = importlib.import_module(f"atlas_istn.{module}")
    names = [n for new in MOVED[module] for n in importlib.import_module(f"atlas_istn.{new}").__all__]
    assert names
    for name in names:
        if (module, name) not in RESHAPED:
            assert getattr(old, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = old.no_such_name


def test_a_module_that_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("atlas_istn.never_was")


def test_an_old_configuration_gives_the_same_voxels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the workflows replace it
    affine = centred(SIZE, (1.0, 1.0, 1.0))
    parser = ConfigParser()
    parser.read_config(str(NEW))
    for key, value in SETTINGS.items():
        parser[key] = value
    torch.manual_seed(0)
    model = save_model(tmp_path / "model.pt", parser.get_parsed_content("network_def"), ellipsoids(affine, SIZE))
    (tmp_path / "scans").mkdir()
    image = nib.Nifti1Image(picture(ellipsoids(affine, SIZE, (1.5, -1.0, 0.5))), affine)
    nib.save(image, tmp_path / "scans" / "a.nii.gz")
    paths = {"dataset_dir": str(tmp_path / "scans"), "ckpt_path": str(model)}
    for name, config in (("old", OLD), ("new", NEW)):
        output = {"output_dir": str(tmp_path / name)}
        flow = ConfigWorkflow(str(config), run_id="inference", logging_file=False, **SETTINGS, **paths, **output)
        flow.initialize()
        flow.run()
    for file in ("seg", "itn", "one_pass", "uncertainty"):
        old, new = (nib.load(tmp_path / name / "a" / f"a_{file}.nii.gz") for name in ("old", "new"))
        np.testing.assert_array_equal(old.get_fdata(), new.get_fdata())
