# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Cost of both refinements of pairs: of the network's weights, as published, and of the transformation's parameters.

    python benchmarks/pair_refinement.py CONFIG [CONFIG …] --set dataset_dir=DATA --set ckpt_path=MODEL

The configurations are those of `run registration`. Each pair of the list is refined by 50 steps of the weights. Then
the parameters are refined, and it is noted when their objective is as low. Seconds are those of the processor, on one
core; those of the parameters count up to that iteration, the network's pass included.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from typing import Any

import torch
from monai.bundle import ConfigParser

from atlas_istn.inferers.pair import PairInferer, PairResult
from atlas_istn.networks import PairISTN

STEPS = 50
LONGEST = 200  # iterations of the parameters


def timed(inferer: PairInferer, image: torch.Tensor, network: PairISTN) -> tuple[PairResult, float]:
    """A registration, and the seconds that the processor took for it."""
    begin = time.process_time()
    result = inferer.infer(image, network)
    return result, time.process_time() - begin


def main() -> None:
    """Compare both for every pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--set", action="append", default=[], metavar="ID=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = ConfigParser()
    config.read_config(options.configs)
    settings: dict[str, Any] = dict(text.split("=", 1) for text in options.set)
    for name, value in settings.items():
        config[name] = value
    config["dataset#data"] = "@pairs"  # all, whatever an output folder holds
    network, ours = config.get_parsed_content("network"), config.get_parsed_content("inferer")
    config.get_parsed_content("loader")()
    network.eval()
    published, longer = copy.copy(ours), copy.copy(ours)
    published.mode, published.iterations, published.settling = "weights", STEPS, type(ours.settling)(0.0)
    longer.mode, longer.iterations, longer.settling = "parameters", LONGEST, type(ours.settling)(0.0)
    dataset = config.get_parsed_content("dataset")
    ratios, rows = [], []
    for number in range(len(dataset)):
        image = dataset[number]["image"][None]
        goal, slow = timed(published, image, network)
        usual, quick = timed(ours, image, network)
        probe, _ = timed(longer, image, network)
        reached = (probe.fit.curve[:, 0] <= goal.fit.loss[0]).nonzero()
        if len(reached):
            steps = int(reached[0])
            ratios.append(slow / (quick * (1 + steps) / (1 + int(usual.fit.iterations[0]))))
        rows.append((slow, quick, float(goal.fit.loss[0]), float(usual.fit.loss[0])))
    weights, parameters, theirs, found = (statistics.median(column) for column in zip(*rows, strict=True))
    sys.stdout.write(
        f"{len(rows)} pairs. Weights, {STEPS} steps: {weights:.3f} s, objective {theirs:.3g}. "
        f"Parameters until settled: {parameters:.3f} s, objective {found:.3g}.\n"
        f"Time to the objective of the weights: {statistics.median(ratios) if ratios else float('nan'):.1f} times less "
        f"(median of {len(ratios)}); never reached in {LONGEST} iterations by {len(rows) - len(ratios)}.\n"
    )


if __name__ == "__main__":
    main()
