# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Target registration error of propagated points on letters B, whose true correspondence is known.

New letters are drawn and segmented with a trained model. In half of them landmarks are marked where they truly are and
taken to the atlas; their mean there is the landmark of the atlas. It is propagated to the other half, and from each
letter of that half the true landmarks to the next one. The error is the distance to where the landmark truly is, in
pixels of the letters; a voxel of the model is two pixels wide.

    python benchmarks/correspondence.py --ckpt output/letter_b/models/model.pt
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import monai
import numpy as np
import numpy.typing as npt
import torch
from scipy.interpolate import griddata

from atlas_istn.data.letter_b import base_coordinates, generate_letter_b
from atlas_istn.shape.propagate import move_points
from atlas_istn.shape.run import ATLAS, Run

__all__ = ["main"]

CONFIGS = Path(__file__).resolve().parents[1] / "bundle/configs"
Points = npt.NDArray[np.float64]

# (x, y) in the base letter. Along a smooth edge nothing in the image tells where a point is; at a corner both
# directions are told.
LANDMARKS: dict[str, list[tuple[float, float]]] = {
    "corners": [(41, 27), (41, 103), (51, 35.5), (51, 60.5), (51, 68.5), (51, 94.5)],
    "smooth edges": [(86, 47.25), (92, 81.25), (76.5, 48), (82.5, 81.5), (41, 65)],
}


def _true_places(index: int, seed: int) -> Points:
    """Where the landmarks are in a letter of the list ``test``, LPS millimetres ``[N, 2]``, which are pixels (x, y)."""
    base = base_coordinates("test", index, seed=seed)
    pixels = np.indices(base.shape[1:])
    wanted = np.array([point for points in LANDMARKS.values() for point in points])
    found = griddata(base.reshape(2, -1).T, pixels.reshape(2, -1).T, wanted[:, ::-1], method="linear")
    return np.asarray(found)[:, ::-1]


def _segment(ckpt: str, config: str, folder: Path, cases: int, seed: int) -> Run:
    generate_letter_b(folder / "data", 0, 0, num_test=cases, num_corrupt=0, seed=seed)
    monai.bundle.run(
        run_id="inference",
        config_file=[str(CONFIGS / "inference.yaml"), config],
        bundle_root=str(CONFIGS.parent),
        dataset_dir=str(folder / "data"),
        output_dir=str(folder / "results"),
        ckpt_path=ckpt,
        batch_size=10,
    )
    return Run.open(folder / "results")


def _row(title: str, errors: Points) -> str:
    """Mean, median, 95th percentile, largest and share below a voxel of the model, two pixels."""
    statistics = (errors.mean(), np.median(errors), np.percentile(errors, 95), errors.max())
    cells = "".join(f"{value:9.2f}" for value in statistics)
    return f"{title:36}{errors.size:6}{cells}{(errors < 2).mean():12.0%}{errors.mean() / 2:16.2f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="model.pt of a letter B training")
    parser.add_argument("--config", default=str(CONFIGS / "data/letter_b.yaml"))
    parser.add_argument("--cases", type=int, default=60, help="letters, half of them to place the landmarks")
    parser.add_argument("--seed", type=int, default=7, help="of the letters; 0 draws those of the quick start")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = _segment(arguments.ckpt, arguments.config, Path(folder), arguments.cases, arguments.seed)
        truth = {case: _true_places(index, arguments.seed) for index, case in enumerate(run.cases)}
        half = arguments.cases // 2
        placing, tested = run.cases[:half], run.cases[half:]
        marked = np.mean([move_points(run, truth[case], case, ATLAS) for case in placing], axis=0)
        pairs = list(zip(tested, [*tested[1:], tested[0]], strict=True))
        moved = {
            "atlas to subject": [(move_points(run, marked, ATLAS, case), case) for case in tested],
            "subject to subject": [(move_points(run, truth[a], a, b), b) for a, b in pairs],
        }
    columns = "".join(f"{name:>9}" for name in ("mean", "median", "95 %", "largest"))
    print(f"{'[pixel]':36}{'n':>6}{columns}{'< 2 pixels':>12}{'mean [voxel]':>16}")
    for way, results in moved.items():
        errors = np.array([np.linalg.norm(points - truth[case], axis=1) for points, case in results])
        start = 0
        for name, landmarks in LANDMARKS.items():
            print(_row(f"{way}, {name}", errors[:, start : start + len(landmarks)]))
            start += len(landmarks)


if __name__ == "__main__":
    main()
