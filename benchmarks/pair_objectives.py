# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The four objectives of pairwise ISTN on brain slices: the tables of the paper, trained alike.

    python benchmarks/pair_objectives.py DATA/brain_2d --output_dir output/brain --stages table,seeds,efficiency

Makes a data set beside the tables, with links to the images of DATA: the same pairs, and pairs whose moving image an
affine map has moved, for the affine models (drawn by a seed; ``affine_starts.csv`` lists them; in training they are
drawn anew each time). Then trains and registers, each training for the same number of optimiser steps and with the best
of its validations, and compares. What is done already is not done again; a training that was stopped goes on.

``table``: three transformations by four objectives, 100 pairs. ``seeds``: two seeds more of what claims rest on.
``efficiency``: 25 and 400 pairs. ``channels``: each structure as a channel of its own.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from runs import Runner
from scipy import ndimage

from atlas_istn.evaluation.scores import read_metrics
from atlas_istn.io.outputs import write_csv, write_json
from atlas_istn.io.pairs import pair_name

CONFIGS = Path("bundle/configs/pair")
OBJECTIVES = ("stn_u", "stn_s", "istn_e", "istn_i")
TRANSFORMATIONS = ("affine", "b_spline", "velocity")
LISTED, FEW, MANY = 100, 25, 400
"""Pairs of the data set's own list, and of those that are cut from it or drawn beside it."""
VALIDATIONS = 8
SHIFT, TURN, LOG_SCALE, SHEAR = 12.0, 20.0, 0.15, 5.0
"""Largest parts of an affine start: mm, degrees, of the logarithm, degrees."""
SEED = 2019


@dataclass(frozen=True)
class Training:
    """One model, and its registrations of the test pairs."""

    transformation: str
    objective: str
    pairs: int = LISTED
    seed: int = 0
    merged: bool = True

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.transformation}_{self.objective}_{self.pairs}_{self.seed}{'' if self.merged else '_channels'}"


def trainings(stage: str) -> Iterator[Training]:
    """What a stage trains."""
    if stage == "table":
        yield from (Training(kind, objective) for kind in TRANSFORMATIONS for objective in OBJECTIVES)
    elif stage == "seeds":
        for seed in (1, 2):
            yield from (Training(kind, name, seed=seed) for kind in TRANSFORMATIONS for name in ("istn_e", "stn_u"))
    elif stage == "efficiency":
        for kind in ("velocity", "affine"):
            yield from (Training(kind, objective, pairs) for pairs in (FEW, MANY) for objective in OBJECTIVES)
    elif stage == "channels":
        yield from (Training("velocity", objective, merged=False) for objective in ("istn_e", "stn_s"))
    else:
        raise SystemExit(f"--stages: expected table, seeds, efficiency or channels, found '{stage}'.")


def prepare(data: Path, folder: Path) -> None:
    """Write the data set with more pairs, and with pairs that begin anywhere."""
    if (folder / "dataset.json").exists():
        return
    content = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("images", "labels"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(data / name)
    labels = {item["image"]: item["label"] for name in ("training", "validation", "test") for item in content[name]}
    listed = content["training_paired_images"]
    content[f"pairs_{FEW}"], content[f"pairs_{LISTED}"] = listed[:FEW], listed
    content[f"pairs_{MANY}"] = listed + more_pairs(listed, [item["image"] for item in content["training"]])
    starts = []
    draw = np.random.default_rng(SEED)
    for name in ("registration_val", "registration_test"):
        moved = []
        for pair in content[name]:
            start = affine_start(draw)
            moved.append(pair | move(pair, labels[pair["moving"]], start, folder))
            starts.append({"list": name, "pair": pair_name(pair["fixed"], pair["moving"]), **start})
        content[f"affine_{name}"] = moved
    write_csv(starts, folder / "affine_starts.csv")
    write_json(content, folder / "dataset.json")


def more_pairs(listed: list[dict[str, str]], images: list[str]) -> list[dict[str, str]]:
    """Draw pairs of different images beside those of a list, up to ``MANY``."""
    draw, known = random.Random(SEED), {(pair["fixed"], pair["moving"]) for pair in listed}
    drawn: list[dict[str, str]] = []
    while len(listed) + len(drawn) < MANY:
        fixed, moving = draw.sample(images, 2)
        if (fixed, moving) not in known:
            known.add((fixed, moving))
            drawn.append({"fixed": fixed, "moving": moving})
    return drawn


def affine_start(draw: np.random.Generator) -> dict[str, float]:
    """Draw the parts of an affine map: mm, degrees, logarithms, degrees."""
    names = {"x": SHIFT, "y": SHIFT, "turn": TURN, "log_scale_x": LOG_SCALE, "log_scale_y": LOG_SCALE, "shear": SHEAR}
    return {name: round(float(draw.uniform(-limit, limit)), 4) for name, limit in names.items()}


def move(pair: Mapping[str, str], label: str, start: Mapping[str, float], folder: Path) -> dict[str, str]:
    """Write a pair's moving image and labels, moved about the centre; return their paths."""
    angle, shear = np.deg2rad(start["turn"]), np.tan(np.deg2rad(start["shear"]))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ [[1, shear], [0, 1]] @ np.diag(np.exp([start["log_scale_x"], start["log_scale_y"]]))
    paths = {}
    for key, source, order in (("moving", pair["moving"], 1), ("moving_label", label, 0)):
        pixels = np.asarray(Image.open(folder / source)).T
        centre = (np.array(pixels.shape) - 1) / 2
        offset = centre - matrix @ (centre + np.array([start["x"], start["y"]]))
        # The names of the files are kept, so that pairs have the same names in all tables.
        path = Path("moved", key, pair_name(pair["fixed"], ""), Path(source).name)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ndimage.affine_transform(pixels, matrix, offset, order=order).T).save(folder / path)
        paths[key] = str(path)
    return paths


def affine_augmentation(folder: Path) -> Path:
    """Write the configuration that draws affine starts in training."""
    path = folder / "affine_starts.yaml"
    path.write_text(
        "extra_augmentation:\n"
        "- {_target_: RandAffined, keys: [moving, moving_structures], allow_missing_keys: true, prob: 1.0, "
        f"translate_range: {SHIFT}, rotate_range: {np.deg2rad(TURN):.4f}, scale_range: {LOG_SCALE}, "
        f"shear_range: {np.tan(np.deg2rad(SHEAR)):.4f}, mode: bilinear, padding_mode: zeros, spatial_size: "
        '"@spatial_size"}\n',
        encoding="utf-8",
    )
    return path


def train(training: Training, runner: Runner, data: Path, steps: int, batch: int = 10) -> None:
    """Train a model and register the test pairs."""
    work = runner.folder / training.name
    prefix = "affine_" if training.transformation == "affine" else ""
    epochs = round(steps / (training.pairs // batch))
    stack = [
        f"{CONFIGS}/variants/{training.objective}.yaml",
        f"{CONFIGS}/data/brain_2d.yaml",
        f"{CONFIGS}/transformations/{training.transformation}.yaml",
    ]
    settings = {"dataset_dir": data, "learning_rate": 0.003, "merge_structures": training.merged, "device": "cpu"}
    runner.bundle(
        f"train_{training.name}",
        "training",
        [f"{CONFIGS}/train.yaml", *stack, *([str(data / "affine_starts.yaml")] if prefix else [])],
        output_dir=work,
        bundle_root=work,
        train_list=f"pairs_{training.pairs}",
        val_list=f"{prefix}registration_val",
        max_epochs=epochs,
        val_interval=max(1, epochs // VALIDATIONS),
        batch_size=batch,
        seed=training.seed,
        resume="true",
        **settings,
    )
    runner.bundle(
        f"register_{training.name}",
        "registration",
        [f"{CONFIGS}/registration.yaml", *stack],
        output_dir=work / "test",
        ckpt_path=work / "models" / "model.pt",
        test_list=f"{prefix}registration_test",
        score_bound=training == Training(training.transformation, "istn_e"),
        resume="true",
        **settings,
    )


def means(path: Path) -> dict[str, str]:
    """Mean Dice and surface distance of each result of a run."""
    rows = read_metrics(path)
    found = {}
    for result in dict.fromkeys(row["result"] for row in rows):
        own = [row for row in rows if row["result"] == result]
        dice, distance = (np.nanmean([row[key] for row in own]) for key in ("dice", "asd"))
        found[result] = f"{dice:.3f} ({distance:.2f})"
    return found


def main() -> None:
    """Parse the arguments and go through the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output_dir", type=Path, default=Path("output/pair_objectives"))
    parser.add_argument("--stages", default="table,seeds,efficiency,channels")
    parser.add_argument("--steps", type=int, default=600, help="of the optimiser, of every training")
    arguments = parser.parse_args()
    folder = arguments.output_dir.resolve()
    data = folder / "data"
    prepare(arguments.data.resolve(), data)
    affine_augmentation(data)
    runner = Runner(folder)
    for stage in arguments.stages.split(","):
        for training in trainings(stage):
            train(training, runner, data, arguments.steps)
            results = folder / training.name / "test" / "metrics.csv"
            print(training.name, *(f"{name} {text}" for name, text in means(results).items()), flush=True)


if __name__ == "__main__":
    main()
