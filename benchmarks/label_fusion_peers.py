# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What `label_fusion.py` compares with: warps by greedy and joint label fusion by ANTs; knows nothing of this package.

python -m venv peers && peers/bin/pip install -r benchmarks/label_fusion_requirements.txt
peers/bin/python benchmarks/label_fusion_peers.py warp TARGET.nii.gz --atlases IMAGE:LABEL ... --output CASE.npz
peers/bin/python benchmarks/label_fusion_peers.py fuse CASE.npz --search 1
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"

import ants
import numpy as np

__all__ = ["fuse", "main", "warp"]

_AFFINE = "-d 3 -threads 1 -a -m NCC 2x2x2 -i {fixed} {moving} -o {affine} -ia-image-centers -n 40x20"
_DEFORM = "-d 3 -threads 1 -m NCC 2x2x2 -i {fixed} {moving} -it {affine} -o {field} -n 40x20"
_RESLICE = "-d 3 -threads 1 -rf {fixed} -rm {moving} {image} -ri LABEL 0.2vox -rm {label} {labels} -r {field} {affine}"


def _scaled(path: Path, folder: Path) -> Path:
    """Write an image with its 1st and 99th percentile at 0 and 1000, so that ANTs' least deviation of 1 is small."""
    image = ants.image_read(str(path))
    low, high = np.percentile(image.numpy(), (1, 99))
    scaled = folder / f"scaled_{path.name}"
    ants.image_write(
        image.new_image_like(1000.0 * (np.clip(image.numpy(), low, high) - low) / (high - low)), str(scaled)
    )
    return scaled


def warp(target: Path, atlases: list[tuple[Path, Path]], output: Path) -> None:
    """Register atlases (image, label) to a target by greedy: affine, then deformable, both by NCC of 5³ voxels."""
    from picsl_greedy import Greedy3D

    begin = time.process_time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fixed = _scaled(target, folder)
        images, labels, log = [], [], io.StringIO()
        for image, label in atlases:
            files = {
                "fixed": fixed,
                "moving": _scaled(image, folder),
                "label": label,
                **{part: folder / f"{part}.nii.gz" for part in ("field", "image", "labels")},
                "affine": folder / "affine.mat",
            }
            for command in (_AFFINE, _DEFORM, _RESLICE):
                Greedy3D().execute(command.format(**files), out=log, err=log)
            images.append(ants.image_read(str(files["image"])).numpy().astype(np.float32))
            labels.append(ants.image_read(str(files["labels"])).numpy().round().astype(np.uint8))
        still = ants.image_read(str(fixed)).numpy().astype(np.float32)
    seconds = time.process_time() - begin
    np.savez_compressed(output, target=still, images=np.stack(images), labels=np.stack(labels), seconds=seconds)


def fuse(case: Path, search: int, correlation: bool) -> None:
    """Fuse by ANTs within the `mask` of a case, and write labels and CPU seconds beside it.

    Background has a label of its own, and comes back as 0: without a posterior of its own it would win nowhere.
    """
    data = np.load(case)
    images = [ants.from_numpy(image) for image in (data["target"], data["mask"].astype(np.float32), *data["images"])]
    labels = [ants.from_numpy(label.astype(np.float32)) for label in data["labels"]]
    begin = time.process_time()
    found = ants.joint_label_fusion(
        images[0],
        images[1],
        images[2:],
        beta=2,
        rad=2,
        label_list=labels,
        rho=0.1,
        usecor=correlation,
        r_search=search,
        max_lab_plus_one=True,
    )
    seconds = time.process_time() - begin
    segmentation = found["segmentation"].numpy().round().astype(np.uint8)
    np.save(case.with_suffix(".ants.npy"), segmentation)
    sys.stdout.write(json.dumps({"seconds": seconds}) + "\n")


def main() -> None:
    """Do one of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    warping = commands.add_parser("warp")
    warping.add_argument("target", type=Path)
    warping.add_argument("--atlases", nargs="+", required=True, help="IMAGE:LABEL")
    warping.add_argument("--output", type=Path, required=True)
    fusing = commands.add_parser("fuse")
    fusing.add_argument("case", type=Path)
    fusing.add_argument("--search", type=int, default=1)
    fusing.add_argument("--correlation", action="store_true")
    arguments = parser.parse_args()
    if arguments.command == "warp":
        pairs = [pair.split(":") for pair in arguments.atlases]
        warp(arguments.target, [(Path(image), Path(label)) for image, label in pairs], arguments.output)
    else:
        fuse(arguments.case, arguments.search, arguments.correlation)


if __name__ == "__main__":
    main()
