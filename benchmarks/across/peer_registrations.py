# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Registrations by images alone: greedy, SyN of ANTs, Demons of SimpleITK; knows nothing of this package.

    python -m venv peers && peers/bin/pip install -r benchmarks/label_fusion_requirements.txt
    peers/bin/python benchmarks/across/peer_registrations.py PAIRS.json OUT

PAIRS.json has ``{"pairs": [{"case", "fixed", "moving", "moving_label"}, …]}``. Writes the moved labels on the grid of
the fixed image to ``OUT/METHOD/CASE.nii.gz``, and what each took to ``OUT/METHOD/CASE.json``; what is there is not done
again. All begin with the centres of both images on each other, and look at images with twice as many slices, so that
eight slices outlast three levels of a pyramid. ``greedy_affine``: NCC of windows of 9 × 9 × 5 voxels unless
``--radius`` says otherwise; ``greedy``: then deformable.
``syn``: by mutual information, affine, then SyN. ``demons``: affine by mutual information, then Demons on images of
matched histograms.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"

import ants
import numpy as np
import SimpleITK as sitk  # noqa: N813 (as its documentation has it)
from picsl_greedy import Greedy3D

__all__ = ["main"]

_AFFINE = "-d 3 -threads 1 -a -m NCC {radius} -i {fixed} {moving} -o {affine} -ia-image-centers -n 100x50x0"
_DEFORM = "-d 3 -threads 1 -m NCC {radius} -i {fixed} {moving} -it {affine} -o {field} -n 100x50x20"
_RESLICE = "-d 3 -threads 1 -rf {grid} -ri LABEL 0.2vox -rm {label} {warped} -r {field} {affine}"  # last moves first

Files = dict[str, Any]
"""``fixed``, ``moving``, ``label`` (of the moving image), ``grid`` (the fixed image as it is), ``warped`` (to be
written), ``folder`` (for the rest); ``radius`` of greedy's windows in voxels."""


def _greedy(files: Files, deform: bool = True) -> None:
    log = io.StringIO()
    more = {"affine": files["folder"] / "affine.mat", "field": files["folder"] / "field.nii.gz" if deform else ""}
    for command in (_AFFINE, *([_DEFORM] if deform else []), _RESLICE):
        Greedy3D().execute(command.format(**files, **more), out=log, err=log)


def _greedy_affine(files: Files) -> None:
    _greedy(files, deform=False)


def _syn(files: Files) -> None:
    fixed, moving, label, grid = (ants.image_read(str(files[name])) for name in ("fixed", "moving", "label", "grid"))
    start = files["folder"] / "start.mat"
    ants.write_transform(ants.create_ants_transform(transform_type="AffineTransform", dimension=3), str(start))
    found = ants.registration(fixed, moving, "SyN", initial_transform=str(start), random_seed=1)
    warped = ants.apply_transforms(grid, label, found["fwdtransforms"], interpolator="genericLabel")
    ants.image_write(warped, str(files["warped"]))


def _demons(files: Files) -> None:
    fixed, moving = (sitk.ReadImage(str(files[name]), sitk.sitkFloat32) for name in ("fixed", "moving"))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, 1)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 100)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2])
    method.SetSmoothingSigmasPerLevel([2, 1])
    method.SetInitialTransform(sitk.AffineTransform(3))
    affine = method.Execute(fixed, moving)
    begun = sitk.Resample(moving, fixed, affine, sitk.sitkLinear)
    matched = sitk.HistogramMatching(begun, fixed, 128, 10, True)
    demons = sitk.DemonsRegistrationFilter()
    demons.SetNumberOfIterations(100)
    demons.SetStandardDeviations(2.0)
    field = sitk.DisplacementFieldTransform(sitk.Cast(demons.Execute(fixed, matched), sitk.sitkVectorFloat64))
    whole = sitk.CompositeTransform([affine, field])
    label, grid = (sitk.ReadImage(str(files[name])) for name in ("label", "grid"))
    sitk.WriteImage(sitk.Resample(label, grid, whole, sitk.sitkLabelGaussian), str(files["warped"]))


METHODS: dict[str, Callable[[Files], None]] = {
    "greedy_affine": _greedy_affine,
    "greedy": _greedy,
    "syn": _syn,
    "demons": _demons,
}


def _prepared(image: sitk.Image) -> sitk.Image:
    """Percentiles 1 and 99 at 0 and 1000; between each two slices a further one."""
    voxels = sitk.GetArrayFromImage(image).astype(np.float32)
    low, high = np.percentile(voxels, (1, 99))
    scaled = sitk.GetImageFromArray(1000 * (np.clip(voxels, low, high) - low) / (high - low))
    scaled.CopyInformation(image)
    size, spacing = list(image.GetSize()), list(image.GetSpacing())
    size[2], spacing[2] = 2 * size[2], spacing[2] / 2
    first = scaled.TransformContinuousIndexToPhysicalPoint((0, 0, -0.25))  # as far out as the old slice reaches
    finer = sitk.ResampleImageFilter()
    finer.SetSize(size)
    finer.SetOutputSpacing(spacing)
    finer.SetOutputOrigin(first)
    finer.SetOutputDirection(image.GetDirection())
    finer.SetInterpolator(sitk.sitkLinear)
    return finer.Execute(scaled)


def _centred(path: str, folder: Path, name: str, prepare: bool) -> Path:
    """Write an image with the centre of its grid at the origin."""
    image = sitk.ReadImage(path)
    if prepare:
        image = _prepared(image)
    image.SetDirection(np.eye(3).ravel().tolist())
    image.SetOrigin([-(n - 1) * s / 2 for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)])
    target = folder / f"{name}.nii.gz"
    sitk.WriteImage(image, str(target))
    return target


def _register(pair: dict[str, str], method: str, radius: str, output: Path) -> None:
    """Register one pair; the labels that are written get the geometry of the fixed image back."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {
            "fixed": _centred(pair["fixed"], folder, "fixed", prepare=True),
            "moving": _centred(pair["moving"], folder, "moving", prepare=True),
            "label": _centred(pair["moving_label"], folder, "label", prepare=False),
            "grid": _centred(pair["fixed"], folder, "grid", prepare=False),
            "warped": folder / "warped.nii.gz",
            "folder": folder,
            "radius": radius,
        }
        begin = time.process_time()
        METHODS[method](files)
        seconds = time.process_time() - begin
        warped = sitk.GetArrayFromImage(sitk.ReadImage(str(files["warped"]))).round().astype(np.uint8)
    labels = sitk.GetImageFromArray(warped)
    labels.CopyInformation(sitk.ReadImage(pair["fixed"]))
    output.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(labels, str(output))
    output.with_name(f"{pair['case']}.json").write_text(json.dumps({"seconds": seconds}), encoding="utf-8")


def main() -> None:
    """Register all pairs by all methods."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--radius", default="4x4x2", help="of greedy's windows, voxels")
    arguments = parser.parse_args()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    for pair in json.loads(arguments.pairs.read_text(encoding="utf-8"))["pairs"]:
        for method in arguments.methods.split(","):
            output = arguments.output / method / f"{pair['case']}.nii.gz"
            if not output.with_name(f"{pair['case']}.json").exists():
                _register(pair, method, arguments.radius, output)


if __name__ == "__main__":
    main()
