# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Where tests find the repository and the real data, and files with headers that no library writes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT.parent / "shared" / "cases"  # small inputs that failed once, a folder for each kind
DATA = Path(os.environ.get("ATLAS_ISTN_DATA", ROOT.parent / "shared" / "data"))


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray, **header: object) -> Path:
    """Write an uncompressed NIfTI file with one affine in both forms, then set header fields as they are given.

    ``sform`` and ``qform`` give a form of its own.
    """
    image = nib.Nifti1Image(voxels, affine)
    image.set_qform(header.pop("qform", affine), 1)
    image.set_sform(header.pop("sform", affine), 1)
    nib.save(image, path)
    content = path.read_bytes()
    fields = nib.Nifti1Header(content[:348], check=False)
    for name, value in header.items():
        fields[name] = value
    path.write_bytes(fields.binaryblock + content[348:])
    return path


def violations(path: Path) -> list[str]:
    """Errors that the validator finds; it also warns of what the series itself lacks, such as a study date."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    run = subprocess.run(["dciodvfy", str(path)], capture_output=True, encoding="utf-8", errors="replace", check=False)
    lines = (run.stdout + run.stderr).splitlines()
    assert "Segmentation" in lines  # it has recognised the kind of object
    return [line for line in lines if line.startswith("Error")]
