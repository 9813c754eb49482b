# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What limits the 1-pass: STN and atlas learn alone, from true labels in the place of an ITN's, with one change each.

    python benchmarks/stn_alone.py data/hippocampus

Voxels of 2 mm; a row takes some minutes. Prints the Dice of the 1-pass and the labels of the validation cases and of as
many training cases: where both are low alike, it is no lack of cases.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from runs import CONFIGS, ROOT

from atlas_istn.inferers.target import disagreement
from atlas_istn.networks import AtlasISTN

CONFIG = (
    *(f"{CONFIGS}/{name}.yaml" for name in ("train", "data/hippocampus", "variants/vml")),
    "benchmarks/joint/labels_alone.yaml",
)
COARSE = {"spatial_size": [24, 32, 24], "spacing": [2.0, 2.0, 2.0]}
_POLYNOMIAL = {
    "_target_": "torch.optim.lr_scheduler.PolynomialLR",
    "optimizer": "@optimizer",
    "total_iters": "@max_epochs",
    "power": 0.9,
}
ROWS: dict[str, Mapping[str, Any]] = {
    "as it is": {},
    "λ 0.5": {"loss_weights#lambda": 0.5},
    "λ 0.1": {"loss_weights#lambda": 0.1},
    "λ 0.005": {"loss_weights#lambda": 0.005},
    "one λ from the start": {"loss_stiff#lambda": None},
    "one pass": {"network_def#stn_passes": 1},
    "one head": {"stn#coarse_heads": False},
    "features normalised in groups": {"stn#norm": ["group", {"num_groups": 4}]},
    "twice the channels": {"stn#channels": [64, 128, 256]},
    "a scale more": {"stn#channels": [32, 64, 128, 128]},
    "twice the learning rate": {"learning_rate": 0.002},
    "weights of the last step": {"weight_average": 0.0},
    "polynomial schedule": {"lr_scheduler": _POLYNOMIAL},
}
"""Title → settings."""


def train(data: Path, output_dir: Path, changes: Mapping[str, Any], epochs: int, seed: int) -> tuple[float, float]:
    """Train a row; return the mean Dice of validation and training cases."""
    parser = ConfigParser()
    parser.read_config([str(ROOT / name) for name in CONFIG])
    settings = {
        "dataset_dir": str(data),
        "output_dir": str(output_dir),
        "max_epochs": epochs,
        "val_interval": epochs,
        "seed": seed,
        **COARSE,
        **changes,
    }
    for key, value in settings.items():
        parser[key] = value
    parser.get_parsed_content("initialize")
    parser.get_parsed_content("train#trainer").run()
    network = parser.get_parsed_content("network").eval()
    held_out, known = (parser.get_parsed_content(f"{stage}#dataset") for stage in ("validate", "train"))
    return one_pass_dice(network, held_out, len(held_out)), one_pass_dice(network, known, len(held_out))


def one_pass_dice(network: AtlasISTN, cases: Sequence[Mapping[str, Any]], count: int) -> float:
    """Mean Dice, over the foreground labels, of the first cases and what the network makes of them in one pass."""
    found = []
    for number in range(count):
        image, label = (torch.as_tensor(cases[number][key])[None] for key in ("image", "label"))
        with torch.no_grad():
            found.append(1.0 - float(disagreement(network(image), label)))
    return float(np.mean(found))


def main() -> None:
    """Parse the arguments, train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output_dir", type=Path, default=Path("output/stn_alone"))
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--epochs", type=int, default=15)
    options = parser.parse_args()
    titles, seeds = options.rows.split(","), [int(seed) for seed in options.seeds.split(",")]
    if unknown := set(titles) - set(ROWS):
        parser.error(f"rows {', '.join(sorted(unknown))}: expected some of {', '.join(ROWS)}.")
    torch.set_num_threads(1)
    lines = [["change", "validation", "training", "processor seconds"], ["---"] * 4]
    for title in titles:
        begin = time.process_time()
        folders = [options.output_dir / f"{title.replace(' ', '_')}_{seed}" for seed in seeds]
        runs = zip(folders, seeds, strict=True)
        found = [train(options.data.resolve(), folder, ROWS[title], options.epochs, seed) for folder, seed in runs]
        seconds = (time.process_time() - begin) / len(seeds)
        lines.append([title, *(" ".join(f"{dice:.4f}" for dice in column) for column in zip(*found, strict=True))])
        lines[-1].append(f"{seconds:.0f}")
        print(f"{time.strftime('%H:%M:%S')} {' | '.join(lines[-1])}", flush=True)
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))


if __name__ == "__main__":
    main()
