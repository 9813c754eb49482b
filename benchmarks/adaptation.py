# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Adaptation of the ITN to images in which it wavers: what it is worth.

    python benchmarks/adaptation.py data/hippocampus

Takes degraded copies of a validation list. The table has how many images are adapted, and of these the mean Dice over
labels of ITN, 1-pass and refined result, as the model is and adapted; ``cases.csv`` has every case. All others stay as
they are. On the model's grid, with the shipped model; some minutes a fault.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from runs import CONFIGS, ROOT
from torch import Tensor
from tqdm import tqdm

from atlas_istn.data.degradations import KINDS, degrade_dataset
from atlas_istn.inferers.adaptation import Adaptation
from atlas_istn.inferers.refine import RefinementInferer
from atlas_istn.inferers.target import disagreement
from atlas_istn.io.outputs import write_csv
from atlas_istn.networks import AtlasISTN

DATA = f"{CONFIGS}/data/hippocampus.yaml"
LIST = "validation"
CLEAN = "none:0"
RESULTS = ("itn", "one_pass", "refine")


def scores(network: AtlasISTN, inferer: RefinementInferer, image: Tensor, label: Tensor) -> dict[str, float]:
    """Dice of ITN, 1-pass and refined result."""
    result = inferer.infer(image, network)
    found = {"itn": result.prediction, "one_pass": result.one_pass, "refine": result.segmentation}
    return {name: 1.0 - float(disagreement(soft, label)) for name, soft in found.items() if soft is not None}


def measure(folder: Path, steps: Sequence[int], count: int) -> Iterator[dict[str, Any]]:
    """Yield scores of the cases in a folder that are to be adapted: as the network is, and adapted by so many steps."""
    training, evaluation = ConfigParser(), ConfigParser()
    training.read_config([str(ROOT / name) for name in (f"{CONFIGS}/train.yaml", DATA)])
    training.update({"dataset_dir": str(folder), "val_list": LIST})
    evaluation.read_config([str(ROOT / name) for name in (f"{CONFIGS}/evaluate.yaml", DATA)])
    evaluation.update({"bundle_root": str(ROOT / "bundle"), "device": torch.device("cpu")})
    network, inferer = (evaluation.get_parsed_content(name) for name in ("network", "refinement"))
    evaluation.get_parsed_content("loader")()
    network.eval()
    adaptations = [Adaptation(**{**evaluation["refine_adaptation"], "steps": number}) for number in steps]
    cases = training.get_parsed_content("validate#dataset")
    for number in tqdm(range(min(count, len(cases))), desc=folder.name, leave=False):
        image, label = (torch.as_tensor(cases[number][key])[None] for key in ("image", "label"))
        with torch.no_grad():
            concerned = adaptations[0].concerned(network, inferer.start(image, network))
        before = scores(network, inferer, image, label) if concerned else {}
        for adaptation in adaptations if concerned else ():
            after = scores(adaptation.adapted(network, image, inferer.amp), inferer, image, label)
            changed = {f"{name}_adapted": dice for name, dice in after.items()}
            yield {"case": number, "steps": adaptation.steps, **before, **changed}


def main() -> None:
    """Parse the arguments, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output_dir", type=Path, default=Path("output/adaptation"))
    parser.add_argument("--faults", default=",".join([CLEAN, *(f"{kind}:3" for kind in KINDS)]))
    parser.add_argument("--cases", type=int, default=20, help="of the list, the first ones")
    parser.add_argument("--steps", default="6")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps = [int(number) for number in options.steps.split(",")]
    rows: list[dict[str, Any]] = []
    print("| fault | adapted | steps | ITN | 1-pass | refine |\n| --- | --- | --- | --- | --- | --- |")
    for fault in options.faults.split(","):
        kind, strength = fault.split(":")
        folder = options.data.resolve()
        if fault != CLEAN:
            target = options.output_dir / f"{kind}_{strength}"
            folder = degrade_dataset(folder, target, kind, int(strength), LIST).parent
        found = [{"fault": f"{kind} {strength}", **row} for row in measure(folder, steps, options.cases)]
        for number in steps:
            print(_line(f"{kind} {strength}", [row for row in found if row["steps"] == number]), flush=True)
        rows += found
        write_csv(rows, options.output_dir / "cases.csv")


def _line(fault: str, rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return f"| {fault} | 0 | | | | |"
    means = [[np.mean([row[name + end] for row in rows]) for end in ("", "_adapted")] for name in RESULTS]
    cells = [f"{before:.3f} → {after:.3f}" for before, after in means]
    return f"| {fault} | {len(rows)} | {rows[0]['steps']} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
