# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Landmarks of the toy set of the ISTN paper: the maxima of its landmark maps, matched between both images of a pair.

The maps do not say which maximum is which. The structures of a pair are registered directly by an affine map, and the
maxima are assigned to each other by least squares of distance after that map, then once more after the affine map that
fits the first assignment best. What is left then says how well an affine map can do at all. Writes a table for each
image, as `--landmarks_dir` wants them, and `landmarks.csv` with a row for each pair: counts, matched points, residuals.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from atlas_istn.io.outputs import world_transforms
from atlas_istn.registration.register import Registration
from atlas_istn.registration.transformations import Affine
from atlas_istn.spatial.world import LPS

THRESHOLD = 60  # of 255, after smoothing
RADIUS = 3  # pixels around a maximum whose centre of mass is the landmark


def read(path: Path) -> np.ndarray:
    """Pixels ``[x, y]`` of a map, 0 to 255."""
    return np.asarray(Image.open(path), dtype=float).T


def landmarks(path: Path) -> np.ndarray:
    """Maxima ``[N, 2]`` of a landmark map in pixels (x, y), finer than a pixel."""
    pixels = read(path)
    smooth = ndimage.gaussian_filter(pixels, 1.0)
    peaks = (smooth == ndimage.maximum_filter(smooth, size=2 * RADIUS - 1)) & (smooth > THRESHOLD)
    marked, count = ndimage.label(peaks, np.ones((3, 3)))
    found = []
    for x, y in np.round(ndimage.center_of_mass(peaks, marked, range(1, count + 1))).astype(int):
        low = np.maximum([x - RADIUS, y - RADIUS], 0)
        window = smooth[low[0] : x + RADIUS + 1, low[1] : y + RADIUS + 1]
        found.append(low + ndimage.center_of_mass(np.maximum(window - 0.5 * smooth[x, y], 0)))
    return np.array(found)


def best_affine(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Matrix ``[3, 2]`` that takes points ``[N, 2]``, with a 1 behind them, to others by least squares."""
    return np.linalg.lstsq(np.c_[source, np.ones(len(source))], target, rcond=None)[0]


def match(data: Path, fixed: str, moving: str) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Matched landmarks of both images of a pair, and what is to be said of them."""
    images = {"fixed": Path(fixed).name, "moving": Path(moving).name}
    points = {side: landmarks(data / "landmark_maps" / name) for side, name in images.items()}
    maps = {
        side: torch.from_numpy(read(data / "structures" / name) / 255).float()[None, None]
        for side, name in images.items()
    }
    registration = Registration(Affine("shear", rate=0.02), iterations=200)
    transform, _ = registration(maps["moving"], maps["fixed"])
    to_moving = world_transforms(transform, LPS, LPS)[0]  # LPS are the pixels of a picture
    there = to_moving(points["fixed"])
    for _ in range(2):
        first, second = linear_sum_assignment(cdist(there, points["moving"]) ** 2)
        affine = best_affine(points["fixed"][first], points["moving"][second])
        there = np.c_[points["fixed"], np.ones(len(points["fixed"]))] @ affine
    residual = np.linalg.norm(there[first] - points["moving"][second], axis=1)
    matched = {"fixed": points["fixed"][first], "moving": points["moving"][second]}
    counts = {f"{side}_points": len(found) for side, found in points.items()}
    return matched, {
        **counts,
        "matched": len(first),
        "mean_residual": residual.mean(),
        "largest_residual": residual.max(),
        "listed": len(set(counts.values())) > 1 or residual.max() > 1.0,
    }


def main() -> None:
    """Write the tables of all pairs of a list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--list", default="registration_test")
    parser.add_argument("--output_dir", type=Path, default=Path("vessel_landmarks"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    rows = []
    for pair in json.loads((options.data / "dataset.json").read_text())[options.list]:
        matched, found = match(options.data, pair["fixed"], pair["moving"])
        rows.append({"pair": f"{Path(pair['fixed']).stem}__{Path(pair['moving']).stem}", **found})
        for side, points in matched.items():
            lines = [f"p{number},{x:.4f},{y:.4f}" for number, (x, y) in enumerate(points)]
            path = options.output_dir / f"{Path(pair[side]).stem}.csv"
            path.write_text("\n".join(["name,x,y", *lines]) + "\n")
        sys.stdout.write(f"{rows[-1]}\n")
    with (options.output_dir / "landmarks.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()} for row in rows
        )


if __name__ == "__main__":
    main()
