# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Who is trained on, who chooses and who is tested: by patient, in three rotations."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from atlas_istn.io.cases import find_cases, read_data_list
from atlas_istn.io.outputs import write_json

__all__ = ["COST_ATLASES", "DIRECTIONS", "LABELS", "Direction", "size_of", "write_rotation", "write_true_crop"]

_NAMES = {"bssfp": "bSSFP", "lge": "LGE"}
SEQUENCES = tuple(_NAMES)
TEST, VALIDATION, SIMILARITY = 5, 4, 3
QUICK = {"": 3, "_test": 2}
"""Part of the patients → how many a smoke test takes of it."""
COST_ATLASES = 10
LABELS = {1: "myocardium", 2: "left ventricle", 3: "right ventricle"}


class Direction(NamedTuple):
    """Atlases of one sequence on targets of the other; registration networks learn the first of the two directions."""

    atlas: str
    target: str

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.atlas}_{self.target}"

    @property
    def title(self) -> str:
        """For people."""
        return f"{_NAMES[self.atlas]} → {_NAMES[self.target]}"

    @property
    def backward(self) -> bool:
        """Whether a network that learned both directions at once has to be asked for its second one."""
        return self != DIRECTIONS[0]


DIRECTIONS = (Direction("bssfp", "lge"), Direction("lge", "bssfp"))


def write_rotation(
    dataset_dir: str | Path, target: str | Path, rotation: int, seed: int = 0, quick: bool = False
) -> Path:
    """Write the lists of one rotation, for each sequence.

    ``bssfp`` has the patients that registrations are trained with, which are the atlases too, and ``bssfp_ten`` the
    first of them; ``bssfp_validation`` those who choose, of whom ``bssfp_similarity`` trains similarities and
    ``bssfp_similarity_validation`` chooses among them; ``bssfp_test``. Likewise ``lge``.

    Args:
        dataset_dir: its dataset.json has the lists ``bssfp`` and ``lge``; file names are PATIENT_SEQUENCE.
        target: folder for the dataset.json.
        rotation: from 0; the patients of its test are in no other's.
        seed: of the draw of patients.
        quick: few patients, for a smoke test.

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
    validation = turned[TEST : TEST + VALIDATION]
    parts = {
        "_test": turned[:TEST],
        "_validation": validation,
        "_similarity": validation[:SIMILARITY],
        "_similarity_validation": validation[SIMILARITY:],
        "": turned[TEST + VALIDATION :],
        "_ten": turned[TEST + VALIDATION :][:COST_ATLASES],
    }
    if quick:
        parts = {name: part[: QUICK.get(name)] for name, part in parts.items()}
    lists = {
        f"{sequence}{name}": [cases[sequence][patient] for patient in part]
        for sequence in SEQUENCES
        for name, part in parts.items()
    }
    return _write(Path(dataset_dir), Path(target), lists)


def size_of(folder: Path, *names: str) -> int:
    """Number of pairs of images of different lists, or of images of one list."""
    return int(np.prod([len(read_data_list(folder / "dataset.json", name)) for name in names]))


def write_true_crop(dataset_dir: Path, target: Path) -> Path:
    """Copy the images of all lists, with a border on one side, so that the heart by its label lies in the middle.

    Args:
        dataset_dir: a folder that `write_rotation` wrote.
        target: folder for the same lists of the copies.

    Returns:
        The target.
    """
    source = json.loads((dataset_dir / "dataset.json").read_text(encoding="utf-8"))
    lists = {}
    for name, entries in source.items():
        if isinstance(entries, list):
            cases = find_cases(str(dataset_dir), name, with_labels=True)
            lists[name] = [_centred(case, target) for case in cases]
    return _write(dataset_dir, target, lists)


def _centred(case: Mapping[str, str], target: Path) -> dict[str, str]:
    """Write image and label of a case, with the heart in the middle."""
    files = {key: target / key / Path(case[key]).name for key in ("image", "label")}
    if not all(path.exists() for path in files.values()):
        images = {key: nib.load(case[key]) for key in files}
        heart = np.argwhere(np.asarray(images["label"].dataobj) > 0)
        before, after = heart.min(axis=0), np.array(images["label"].shape) - 1 - heart.max(axis=0)
        border = [(max(0, int(step)), max(0, -int(step))) for step in after - before]
        for key, path in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            image = images[key]
            nib.save(type(image)(np.pad(np.asarray(image.dataobj), border), image.affine, image.header), path)
    return {key: str(path) for key, path in files.items()}


def _write(source: Path, target: Path, lists: Mapping[str, Sequence[Mapping[str, str]]]) -> Path:
    """Write a dataset.json with files that lie elsewhere."""
    whole = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in whole.items() if not isinstance(value, list)}
    entries = {
        name: [{key: os.path.relpath(case[key], target) for key in ("image", "label")} for case in cases]
        for name, cases in lists.items()
    }
    write_json({**kept, **entries}, target / "dataset.json")
    return target
