# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Cardiac MR: trained on bSSFP of 18 patients, tested on bSSFP and on LGE of the 6 others.

    python benchmarks/experiments/cardiac.py --dataset_dir data/cardiac_mr

Three of the 18 are not trained on: they choose the model.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from runner import LARGEST_COMPONENT, Bench, argument_parser, write_lists
from tables import keep_comparison, write_tables

from atlas_istn.io.cases import find_cases

__all__ = ["main", "split_by_patient"]

DATA = "bundle/configs/data/cardiac_mr.yaml"
UNET = "bundle/configs/variants/unet.yaml"
SEQUENCES = ("bssfp", "lge")
TEST_PATIENTS, VALIDATION_PATIENTS = 6, 3
QUICK: dict[str, Any] = {"max_epochs": 1, "val_interval": 1, "final_atlas_rounds": 0}
QUICK_SIZE: dict[str, Any] = {"spatial_size": [32, 32, 24], "spacing": [4.5, 4.5, 6.0], "refine_iterations": 5}
RESULTS = {
    "U-net": ("unet", "itn"),
    "U-net1cc": ("unet1cc", "itn"),
    "ITN": ("full", "itn"),
    "ITN1cc": ("full", "itn1cc"),
    "1-pass": ("full", "one_pass"),
    "refine": ("full", "refine"),
}
"""Name in tables → run and its result."""


def split_by_patient(dataset_dir: str | Path, target: str | Path, seed: int = 0) -> Path:
    """Lists of a data set with one bSSFP and one LGE image per patient, in which no patient is on both sides.

    Args:
        dataset_dir: its dataset.json has the lists ``bssfp`` and ``lge``; file names are PATIENT_SEQUENCE.
        target: folder for the dataset.json with the lists ``training`` and ``validation`` (bSSFP) and
            ``test_bssfp`` and ``test_lge`` (of the same patients).
        seed: of the draw of patients.

    Returns:
        The target.
    """
    cases = {
        sequence: {
            re.sub(rf"_{sequence}$", "", case["case"]): case for case in find_cases(str(dataset_dir), sequence, True)
        }
        for sequence in SEQUENCES
    }
    patients = sorted(set.intersection(*(set(of_sequence) for of_sequence in cases.values())))
    drawn = [patients[index] for index in np.random.default_rng(seed).permutation(len(patients))]
    test, rest = drawn[:TEST_PATIENTS], drawn[TEST_PATIENTS:]
    parts = {"validation": rest[:VALIDATION_PATIENTS], "training": rest[VALIDATION_PATIENTS:]}
    lists = {name: [cases["bssfp"][patient] for patient in part] for name, part in parts.items()}
    tests = {f"test_{name}": [cases[name][patient] for patient in test] for name in SEQUENCES}
    return write_lists(dataset_dir, target, lists | tests)


def main() -> None:
    """Train, evaluate and compare."""
    parser = argument_parser(__doc__, "data/cardiac_mr")
    parser.add_argument("--epochs", type=int, default=150)
    arguments = parser.parse_args()
    bench, testing = Bench(arguments.output_dir), {}
    dataset_dir = split_by_patient(arguments.dataset_dir, bench.output_dir / "data")
    training = {"seed": arguments.seed, "max_epochs": arguments.epochs}
    if arguments.quick:
        training, testing = training | QUICK | QUICK_SIZE, QUICK_SIZE

    full = bench.train("full", [DATA], dataset_dir, **training)
    unet = bench.train("unet", [DATA, UNET], dataset_dir, **training)
    models = {
        "full": ([DATA, LARGEST_COMPONENT], full),
        "unet": ([DATA, UNET], unet),
        "unet1cc": ([DATA, UNET, "bundle/configs/variants/unet1cc.yaml"], unet),
    }
    for sequence in SEQUENCES:
        runs = {
            name: bench.evaluate(name, configs, model, dataset_dir, test_list=f"test_{sequence}", **testing)
            for name, (configs, model) in models.items()
        }
        methods = {name: (runs[run], result) for name, (run, result) in RESULTS.items()}
        keep_comparison(bench.output_dir / "results" / sequence, methods)
    write_tables(bench.output_dir / "results")


if __name__ == "__main__":
    main()
