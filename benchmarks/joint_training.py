# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Ablation of the joint training: what each change is worth for the ITN, the 1-pass and the refined result.

    python benchmarks/joint_training.py data/hippocampus --rows "as it is,λ 0.1"

Every row is a short training with one change, scored on ``validation`` in native space, for several seeds. Stopped, it
goes on. Prints the mean Dice over labels and cases, each seed by itself, and the gain over the first row.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from joint.rows import ROWS, Row
from runs import CONFIGS, Runner

from atlas_istn.evaluation.scores import read_metrics

RESULTS = ("itn", "one_pass", "refine")
DATA = f"{CONFIGS}/data/hippocampus.yaml"
ALONE = "benchmarks/joint/training_alone.yaml"
FIRST = next(iter(ROWS))
SECONDS = "seconds"
OF_MODEL = ("itn", "network", "stn", "spatial_size", "spacing")  # settings that inference needs, too
COARSE = {"spatial_size": "[24,32,24]", "spacing": "[2.0,2.0,2.0]"}

Scores = Mapping[str, float]


def train(runner: Runner, data: Path, name: str, row: Row, epochs: int, settings: Mapping[str, Any]) -> Path:
    """Train a row, and before it what it begins with; return its model.

    Args:
        runner: runs it.
        data: data set.
        name: of the run.
        row: what is trained.
        epochs: of a whole training.
        settings: what all rows have in common.
    """
    given: dict[str, Any] = {}
    if row.before:
        given["itn_path"] = train(runner, data, f"{name}_before", row.before, epochs, settings)
    length = max(1, round(row.epochs * epochs))
    folder = runner.folder / name
    training: dict[str, Any] = {
        "dataset_dir": data,
        "output_dir": folder,
        "bundle_root": folder,
        "max_epochs": length,
        "val_interval": max(1, length // 3),
        "resume": "true",
        **settings,
        **given,
    }
    runner.bundle(f"train_{name}", "training", [f"{CONFIGS}/train.yaml", DATA, ALONE, *row.configs], **training)
    return folder / "models" / "model.pt"


def score(runner: Runner, data: Path, title: str, seed: int, epochs: int, model: Mapping[str, Any]) -> Scores:
    """Train and evaluate a row with a seed; return the mean Dice of each result, and the seconds of the training.

    Args:
        runner: runs both.
        data: data set.
        title: of the row in `ROWS`.
        seed: of the training.
        epochs: of the training.
        model: what the networks of all rows have in common.
    """
    name, row = f"{title.replace(' ', '_')}_{seed}", ROWS[title]
    changed = {**model, **row.settings}
    trained = train(runner, data, name, row, epochs, {"seed": seed, **changed})
    testing: dict[str, Any] = {
        "dataset_dir": data,
        "test_list": "validation",
        "ckpt_path": trained,
        "output_dir": runner.folder / f"{name}_validation",
    }
    testing |= {key: value for key, value in changed.items() if key.startswith(OF_MODEL)}
    runner.bundle(f"test_{name}", "evaluate", [f"{CONFIGS}/evaluate.yaml", DATA], **testing)
    rows = read_metrics(runner.folder / f"{name}_validation" / "metrics.csv")
    scores = {result: float(np.mean([line["dice"] for line in rows if line["result"] == result])) for result in RESULTS}
    stages = sorted(runner.folder.glob(f"train_{name}*.json"))
    return {**scores, SECONDS: sum(json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in stages)}


def main() -> None:
    """Parse the arguments, train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output_dir", type=Path, default=Path("output/joint_training"))
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--coarse", action="store_true", help="voxels of 2 mm: 8 times faster")
    options = parser.parse_args()
    rows, seeds = options.rows.split(","), [int(seed) for seed in options.seeds.split(",")]
    if unknown := set(rows) - set(ROWS):
        parser.error(f"rows {', '.join(sorted(unknown))}: expected some of {', '.join(ROWS)}.")
    runner, data = Runner(options.output_dir.resolve()), options.data.resolve()
    model = COARSE if options.coarse else {}
    scores = {row: [score(runner, data, row, seed, options.epochs, model) for seed in seeds] for row in rows}
    header = ["change", *RESULTS, "gain of each seed", "processor seconds"]
    for line in (header, ["---"] * len(header), *(_line(row, scores) for row in rows)):
        print("|", " | ".join(line), "|")


def _line(row: str, scores: Mapping[str, list[Scores]]) -> list[str]:
    means = [" ".join(f"{found[result]:.4f}" for found in scores[row]) for result in RESULTS]
    seconds = " ".join(f"{found[SECONDS]:.0f}" for found in scores[row])
    if FIRST not in scores or row == FIRST:
        return [row, *means, "", seconds]
    gains = [
        f"{result} "
        + " ".join(f"{a[result] - b[result]:+.4f}" for a, b in zip(scores[row], scores[FIRST], strict=True))
        for result in RESULTS
    ]
    return [row, *means, "; ".join(gains), seconds]


if __name__ == "__main__":
    main()
