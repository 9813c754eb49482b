# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The packed bundle, unpacked on a machine that has the requirements but not the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, load

from atlas_istn.errors import InputError
from atlas_istn.models.export import load_network
from atlas_istn.models.pack import pack_bundle
from support import ROOT

SHAPE = (48, 64, 48)
NOT_HIDDEN = 77
# Without the module `site` the interpreter reads no .pth file, so an editable installation does not exist for it.
RUNNER = f"""
import importlib.util, runpy, sys
here = sys.path.pop(0)  # which `python -m` would put there
if importlib.util.find_spec("atlas_istn"):
    sys.exit({NOT_HIDDEN})
sys.path.insert(0, here)
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle with untrained weights."""
    folder = tmp_path_factory.mktemp("source") / "bundle"
    shutil.copytree(ROOT / "bundle", folder, ignore=shutil.ignore_patterns("models"))
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.yaml"))
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def")
    network.atlas_labels[:, 0] = 1
    network.atlas_labels[:, :, 16:32, 24:40, 16:32] = torch.tensor([0.0, 1.0, 0.0]).reshape(3, 1, 1, 1)
    (folder / "models").mkdir()
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.fixture(scope="module")
def unpacked(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere")
    pack_bundle(str(bundle), str(folder / "packed.zip"))
    with zipfile.ZipFile(folder / "packed.zip") as archive:
        archive.extractall(folder)
    return folder / "packed"


def without_package(folder: Path, *arguments: str, **settings: object) -> None:
    """`python -m monai.bundle` in a folder, with the requirements and without the package."""
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    libraries = os.pathsep.join(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))
    run = subprocess.run(
        [sys.executable, "-S", "-c", RUNNER, *arguments, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": libraries, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if run.returncode == NOT_HIDDEN:
        pytest.skip("atlas_istn is installed as a copy among its requirements; install it with pip install -e")
    assert run.returncode == 0, run.stderr[-3000:]


def test_a_pack_holds_bundle_package_and_requirements(bundle: Path, unpacked: Path) -> None:
    for source, target in ((bundle, unpacked), (ROOT / "custom" / "atlas_istn", unpacked / "atlas_istn")):
        files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
        expected = [path for path in files if not path.name.startswith(".") and "__pycache__" not in path.parts]
        expected = [path for path in expected if "experiments" not in {path.stem, *path.parts}]
        assert len(expected) > 5
        assert [path for path in expected if (target / path).read_bytes() != (source / path).read_bytes()] == []
    assert not list(unpacked.rglob("__pycache__"))
    assert not list((unpacked / "docs").glob("experiments*"))
    requirements = (unpacked / "requirements.txt").read_text().splitlines()
    assert {"torch", "monai", "itk"} <= {line.split(">")[0].split("<")[0] for line in requirements}
    assert not [line for line in requirements if "pytest" in line]


def test_a_pack_runs_where_the_package_is_not_installed(unpacked: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    image = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "data" / "case.nii.gz")
    settings = {
        "bundle_root": unpacked,
        "config_file": unpacked / "configs" / "inference.yaml",
        "dataset_dir": "data",
        "output_dir": "out",
        "refine_iterations": 1,
    }
    without_package(tmp_path, "run", "inference", **settings)
    assert nib.load(tmp_path / "out" / "case" / "case_seg.nii.gz").shape == SHAPE


@pytest.mark.slow
def test_a_pack_is_verified_and_exported_in_its_folder(unpacked: Path, tmp_path: Path) -> None:
    """MONAI itself puts the bundle on the path for `run` alone; Python does for the folder that it is started in."""
    files = {"config_file": "configs/inference.yaml", "meta_file": "configs/metadata.json"}
    without_package(unpacked, "verify_net_in_out", "network_def", **files)
    target = {"filepath": tmp_path / "model.ts", "ckpt_file": "models/model.pt"}
    without_package(unpacked, "ckpt_export", "network_def", **target, **files)
    assert (tmp_path / "model.ts").stat().st_size > 10000


def test_monai_loads_a_pack(bundle: Path, unpacked: Path) -> None:
    parser = ConfigParser()
    parser.read_config(str(unpacked / "configs" / "inference.yaml"))
    network = parser.get_parsed_content("network_def")
    loaded = load(unpacked.name, model=network, bundle_dir=str(unpacked.parent), device="cpu")
    for name, value in load_network(bundle / "configs" / "inference.yaml").state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=0, rtol=0)


def test_what_is_no_bundle_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metadata\.json: no such file"):
        pack_bundle(str(tmp_path), str(tmp_path / "a.zip"))
    with pytest.raises(InputError, match=r"ends with \.zip"):
        pack_bundle(str(bundle), str(tmp_path / "a.tar"))
    shutil.copytree(bundle / "configs", tmp_path / "old" / "configs")
    (tmp_path / "old" / "models").mkdir()
    torch.save({"other": torch.zeros(1)}, tmp_path / "old" / "models" / "model.pt")
    with pytest.raises(InputError, match="does not fit this configuration"):
        pack_bundle(str(tmp_path / "old"), str(tmp_path / "a.zip"))
    assert not (tmp_path / "a.zip").exists()
