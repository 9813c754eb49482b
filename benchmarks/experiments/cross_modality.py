# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Cardiac MR across contrasts: bSSFP images of other patients are registered to LGE, by networks that see labels alone.

    python benchmarks/experiments/cross_modality.py --dataset_dir data/cardiac_mr

Of 24 patients 15 train the registration, 4 choose the epoch and 5 test; in each rotation five others.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from runner import write_lists

from atlas_istn.io.cases import find_cases

__all__ = ["write_rotation"]

SEQUENCES = ("bssfp", "lge")
TEST, VALIDATION = 5, 4


def write_rotation(dataset_dir: str | Path, target: str | Path, rotation: int, seed: int = 0) -> Path:
    """Write the lists of one rotation: ``bssfp`` and ``lge`` of the training, ``…_validation`` and ``…_test``.

    Args:
        dataset_dir: its dataset.json has the lists ``bssfp`` and ``lge``; file names are PATIENT_SEQUENCE.
        target: folder for the dataset.json.
        rotation: from 0; the patients of its test are in no other's.
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
    turned = drawn[rotation * TEST :] + drawn[: rotation * TEST]
    parts = {"_test": turned[:TEST], "_validation": turned[TEST : TEST + VALIDATION], "": turned[TEST + VALIDATION :]}
    lists = {
        f"{sequence}{name}": [cases[sequence][patient] for patient in part]
        for sequence in SEQUENCES
        for name, part in parts.items()
    }
    return write_lists(dataset_dir, target, lists)
