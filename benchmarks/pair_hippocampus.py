# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Pairs of hippocampi: STN-u against ISTN-e, velocity fields and B-splines, beside greedy and SyN of ANTs.

    python benchmarks/pair_hippocampus.py DATA/hippocampus --output_dir output/hippocampus --peers PEERS/bin/python

100 pairs of training images, 40 of test images, drawn by a seed; all trainings have the same number of optimiser steps,
and the best of their validations. What is done already is not done again; a training that was stopped goes on.
``--transformations velocity`` does a part, so that two processors share the work. PEERS: see
`across/peer_registrations.py`; without it, they are left out. Ends with a table: mean Dice of all pairs, and what is
gained above others with the interval of a bootstrap over the fixed images.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from across.scores import Values, difference, mean_text
from across.singles import measure_warped
from monai.bundle import ConfigParser
from monai.metrics import compute_dice
from runs import CONFIGS, Runner

from atlas_istn.evaluation.scores import read_metrics
from atlas_istn.io.outputs import write_csv, write_json
from atlas_istn.io.pairs import find_pairs
from atlas_istn.networks.pair import split_pair

LABELS = {1: "anterior", 2: "posterior"}
TEST_PAIRS, BATCH, TRAINING_PAIRS, VALIDATIONS = 40, 2, 100, 3
BENDING = {"b_spline": 0.1, "velocity": 0.01}
"""Weight of the regulariser beside the default one, which is 0 and 0.1."""
OBJECTIVES = {"istn_e": ["istn_e", "unet_itn"], "stn_u": ["stn_u"], "istn_e_small": ["istn_e"]}
"""Name → variants that are stacked; the last one has the paper's own ITN."""


def stack(workflow: str, transformation: str, objective: str) -> list[str]:
    """Configurations of a workflow."""
    folder = f"{CONFIGS}/pair"
    variants = [f"{folder}/variants/{name}.yaml" for name in OBJECTIVES[objective]]
    data = [f"{folder}/data/hippocampus.yaml", f"{folder}/transformations/{transformation}.yaml"]
    return [f"{folder}/{workflow}.yaml", *variants, *data]


def train(runner: Runner, data: Path, transformation: str, objective: str, steps: int, bound: bool) -> None:
    """Train a model, register the test pairs, and score what its ITN makes of them."""
    name = f"{transformation}_{objective}"
    work = runner.folder / name
    epochs = round(steps * BATCH / TRAINING_PAIRS)
    settings = {"dataset_dir": data, "device": "cpu", "resume": "true"}
    runner.bundle(
        f"train_{name}",
        "training",
        stack("train", transformation, objective),
        output_dir=work,
        bundle_root=work,
        max_epochs=epochs,
        val_interval=epochs // VALIDATIONS,
        amp="true",
        **settings,
    )
    registrations: dict[str, dict[str, float]] = {"test": {}, "bending": {"refine_lambda": BENDING[transformation]}}
    for folder, more in registrations.items():
        runner.bundle(
            f"{folder}_{name}",
            "registration",
            stack("registration", transformation, objective),
            output_dir=work / folder,
            ckpt_path=work / "models" / "model.pt",
            test_list="test",
            random_pairs=TEST_PAIRS,
            score_bound=bound and objective == "istn_e" and folder == "test",
            **settings,
            **more,
        )
    if objective != "stn_u" and not (work / "itn.csv").exists():
        score_itn(work, data)


def score_itn(work: Path, data: Path) -> None:
    """Write the Dice of the ITN's output above one half with the structures, of each test image, on its grid."""
    config = ConfigParser()
    config.read_config(str(work / "configs" / "registration.yaml"))
    config.update({"bundle_root": str(work), "dataset_dir": str(data), "device": "cpu", "dataset#data": "@pairs"})
    config.update({"test_list": "test", "random_pairs": TEST_PAIRS})
    network, dataset = config.get_parsed_content("network"), config.get_parsed_content("dataset")
    config.get_parsed_content("loader")()
    rows: dict[str, dict[str, object]] = {}
    for item in (dataset[number] for number in range(len(dataset))):
        images, structures = (split_pair(torch.as_tensor(item[key])[None]) for key in ("image", "label"))
        for case, image, truth in zip(reversed(item["case"].split("__")), images, structures, strict=True):
            with torch.no_grad():
                found = network.eval().represent(image) > 0.5
            dice = compute_dice(found, truth > 0.5)[0].tolist()
            rows[case] = {"case": case, **dict(zip(LABELS.values(), dice, strict=True))}
    write_csv([rows[case] for case in sorted(rows)], work / "itn.csv")


def register_peers(runner: Runner, data: Path, peers: str) -> None:
    """Register the test pairs by others."""
    pairs = [
        {
            "case": pair["case"],
            **{side: pair[side] for side in ("fixed", "moving")},
            **{f"{side}_label": pair[f"{side}_structure"] for side in ("fixed", "moving")},
        }
        for pair in find_pairs(str(data), "test", random_pairs=TEST_PAIRS)
    ]
    listed, folder = runner.folder / "pairs.json", runner.folder / "peers"
    write_json({"pairs": pairs}, listed)
    script = str(Path(__file__).parent / "across" / "peer_registrations.py")
    options = ["--methods", "greedy_affine,greedy,syn", "--radius", "2x2x2"]
    runner.execute("peers", [peers, script, str(listed), str(folder), *options])
    measure_warped(pairs, folder, LABELS)


def results(folder: Path) -> dict[str, dict[str, Values]]:
    """What was measured: method → label or mean → pair → Dice."""
    found: dict[str, dict[str, Values]] = {}
    for path in sorted(folder.glob("*/metrics.csv")) + sorted(folder.glob("*/*/metrics.csv")):
        where = path.parent.relative_to(folder).as_posix().removesuffix("/test")
        rows: dict[str, dict[str, Values]] = defaultdict(lambda: defaultdict(dict))
        for row in read_metrics(path):
            rows[row["result"]][row["label"]][row["case"]] = row["dice"]
        for result, labels in rows.items():
            means = {
                case: float(np.mean([labels[name][case] for name in LABELS.values()])) for case in labels["anterior"]
            }
            found[f"{where} {result}"] = {**labels, "mean": means}
    return found


def main() -> None:
    """Parse the arguments, train, register and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output_dir", type=Path, default=Path("output/pair_hippocampus"))
    parser.add_argument("--transformations", default="velocity,b_spline")
    parser.add_argument("--objectives", default=",".join(OBJECTIVES), help="the small ITN: velocity fields only")
    parser.add_argument("--steps", type=int, default=1500, help="of the optimiser, of every training")
    parser.add_argument("--bound", action="store_true", help="register the structures themselves, too: 25 s a pair")
    parser.add_argument("--peers", default="")
    arguments = parser.parse_args()
    data = arguments.data.resolve()
    runner = Runner(arguments.output_dir.resolve())
    for transformation in arguments.transformations.split(","):
        for objective in arguments.objectives.split(","):
            if objective != "istn_e_small" or transformation == "velocity":
                train(runner, data, transformation, objective, arguments.steps, arguments.bound)
    if arguments.peers:
        register_peers(runner, data, arguments.peers)
    scores = results(runner.folder)
    for method, labels in scores.items():
        sys.stdout.write(
            f"{method}: " + ", ".join(f"{name} {mean_text(values)}" for name, values in labels.items()) + "\n"
        )
        for other in ("velocity_stn_u refine", "b_spline_stn_u refine", "peers greedy", "peers syn"):
            if method.endswith("istn_e refine") and other in scores:
                sys.stdout.write(f"    above {other}: {difference(labels['mean'], scores[other]['mean'])}\n")


if __name__ == "__main__":
    main()
