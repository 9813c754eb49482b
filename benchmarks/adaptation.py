# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Adaptation of the ITN to one image, so that what it predicts, brought to the atlas, is like the atlas.

    python benchmarks/adaptation.py data/hippocampus

As AdaAtlas does it (Guo et al., 2307.00676): Adam moves the weights of the ITN's normalisation, on a copy for each
image, and STN and atlas stay as they are. Prints the mean Dice over labels and cases of ITN, 1-pass and refined
result on the model's grid, on degraded copies of a validation list, as the model is and after so many steps.
Every case: ``cases.csv``.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from runs import CONFIGS, ROOT
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from tqdm import tqdm

from atlas_istn.data.degradations import degrade_dataset
from atlas_istn.inferers.refine import RefinementInferer
from atlas_istn.inferers.target import disagreement
from atlas_istn.io.outputs import write_csv
from atlas_istn.networks import AtlasISTN
from atlas_istn.registration.objective import Objective, Pair

DATA = f"{CONFIGS}/data/hippocampus.yaml"
LIST = "validation"
CLEAN = "none:0"
AS_IT_IS = "as it is"


def adapted(network: AtlasISTN, image: Tensor, rate: float, steps: Sequence[int]) -> Iterator[tuple[int, AtlasISTN]]:
    """Yield copies of a network whose ITN has been adapted to an image ``[1, C, *shape]`` by so many steps."""
    network = copy.deepcopy(network).requires_grad_(False)
    layers = [layer for layer in network.itn.modules() if isinstance(layer, _NormBase | nn.GroupNorm)]
    weights = [weight.requires_grad_() for layer in layers for weight in (layer.weight, layer.bias)]
    optimiser = torch.optim.Adam(weights, lr=rate)
    for step in range(1, max(steps) + 1):
        prediction = network.segment(image)
        transform = network.transform(*network.register(prediction))
        loss = Objective([Pair(network.atlas_labels, prediction, backward=True)])(transform).misfit.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step in steps:
            yield step, network


def scores(network: AtlasISTN, inferer: RefinementInferer, image: Tensor, label: Tensor) -> dict[str, float]:
    """Dice of ITN, 1-pass and refined result with the label, and of the first two with each other."""
    result = inferer.infer(image, network)
    if result.prediction is None or result.one_pass is None:
        raise SystemExit("a model without ITN or STN.")
    pairs = {
        "itn": (result.prediction, label),
        "one_pass": (result.one_pass, label),
        "refine": (result.segmentation, label),
        "agreement": (result.prediction, result.one_pass),
    }
    return {name: 1.0 - float(disagreement(*pair)) for name, pair in pairs.items()}


def measure(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield scores of the cases in a folder: as the network is, and after each adaptation."""
    training, evaluation = ConfigParser(), ConfigParser()
    training.read_config([str(ROOT / name) for name in (f"{CONFIGS}/train.yaml", DATA)])
    training.update({"dataset_dir": str(folder), "val_list": LIST})
    evaluation.read_config([str(ROOT / name) for name in (f"{CONFIGS}/evaluate.yaml", DATA)])
    evaluation.update({"bundle_root": str(ROOT / "bundle"), "device": torch.device("cpu")})
    network, inferer = (evaluation.get_parsed_content(name) for name in ("network", "refinement"))
    evaluation.get_parsed_content("loader")()
    cases = training.get_parsed_content("validate#dataset")
    for number in tqdm(range(min(options.cases, len(cases))), desc=folder.name, leave=False):
        image, label = (torch.as_tensor(cases[number][key])[None] for key in ("image", "label"))
        yield {"adapted": AS_IT_IS, "case": number, **scores(network.eval(), inferer, image, label)}
        for rate in map(float, options.rates.split(",")):
            for step, other in adapted(network, image, rate, [int(step) for step in options.steps.split(",")]):
                yield {"adapted": f"{step} steps of {rate:g}", "case": number, **scores(other, inferer, image, label)}


def main() -> None:
    """Parse the arguments, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output_dir", type=Path, default=Path("output/adaptation"), help="for the degraded images")
    parser.add_argument("--faults", default=f"{CLEAN},contrast:3,bias_field:3", help="kinds and strengths")
    parser.add_argument("--cases", type=int, default=20, help="of the list, the first ones")
    parser.add_argument("--rates", default="0.001,0.01", help="of Adam")
    parser.add_argument("--steps", default="3,8")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for fault in options.faults.split(","):
        kind, strength = fault.split(":")
        folder = options.data.resolve()
        if fault != CLEAN:
            target = options.output_dir / f"{kind}_{strength}"
            folder = degrade_dataset(folder, target, kind, int(strength), LIST).parent
        rows += [{"fault": f"{kind} {strength}", **row} for row in measure(folder, options)]
        write_csv(rows, options.output_dir / "cases.csv")
    print("| fault | ITN is adapted by | ITN | 1-pass | refine |\n| --- | --- | --- | --- | --- |")
    for fault, title in dict.fromkeys((row["fault"], row["adapted"]) for row in rows):
        mine = [row for row in rows if (row["fault"], row["adapted"]) == (fault, title)]
        means = [np.mean([row[result] for row in mine]) for result in ("itn", "one_pass", "refine")]
        print(f"| {fault} | {title} | {' | '.join(f'{dice:.3f}' for dice in means)} |")


if __name__ == "__main__":
    main()
