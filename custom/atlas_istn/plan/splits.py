# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Lists for training, validation and test, with all cases of a patient in one of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ..errors import InputError
from ..io.names import patients_of
from .discover import LISTS, Case

__all__ = ["folds", "patients", "split"]

_SHARES = {"validation": 0.15, "test": 0.15}
_FEWEST_FOR_TEST = 10  # patients; of fewer none is spared for a test


def patients(cases: Sequence[Case], alike: Sequence[Collection[str]] = ()) -> dict[str, list[Case]]:
    """Group cases by patient, as far as their names tell, see `patients_of`.

    Args:
        cases: the cases.
        alike: names of cases whose images are the same, and so of one patient, whatever they are called.
    """
    known = dict(zip((case.name for case in cases), patients_of([case.name for case in cases]), strict=True))
    for group in alike:
        same = {known[name] for name in group if name in known}
        known = {name: min(same) if patient in same else patient for name, patient in known.items()}
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[known[case.name]].append(case)
    return dict(groups)


def split(cases: Sequence[Case], seed: int, alike: Sequence[Collection[str]] = ()) -> dict[str, list[Case]]:
    """Keep the lists that there are, and make those that are missing.

    Cases of other lists than `LISTS` are shared out, and so is a training list that stands alone: 15 % of the patients,
    at least one, for validation, and as many for a test where there are at least ten patients. Where there is a list
    for training and a second one, no test is made. See `patients` for ``alike``.

    Raises:
        InputError: there are too few patients.
    """
    known = {name: [case for case in cases if case.source == name] for name in LISTS}
    lists = {name: list(found) for name, found in known.items() if found}
    pool = [case for case in cases if case.source not in LISTS] or lists.pop("training", [])
    groups = patients(pool, alike)
    names = sorted(groups)
    np.random.default_rng(seed).shuffle(names)
    alone = not lists
    for name, share in _SHARES.items():
        if name in lists or (name == "test" and (not alone or len(groups) < _FEWEST_FOR_TEST)):
            continue
        count = max(1, round(share * len(groups)))
        taken, names = names[:count], names[count:]
        lists[name] = [case for patient in sorted(taken) for case in groups[patient]]
    training = [*lists.pop("training", []), *(case for patient in sorted(names) for case in groups[patient])]
    if not training:
        raise InputError(
            f"{len(groups)} patient(s) with labels: too few to train on some and validate on others. Expected two at "
            "least, and better twenty."
        )
    return {"training": training, **{name: lists[name] for name in LISTS[1:] if name in lists}}


def folds(
    lists: Mapping[str, Sequence[Case]], number: int, seed: int, alike: Sequence[Collection[str]] = ()
) -> dict[str, list[Case]]:
    """Make lists ``training_fold0``, ``validation_fold0``, … of the cases for training and validation, by patient.

    See `patients` for ``alike``.

    Raises:
        InputError: there are fewer patients than folds.
    """
    groups = patients([*lists["training"], *lists["validation"]], alike)
    if not 2 <= number <= len(groups):
        raise InputError(f"--folds {number}: expected 2 to {len(groups)}, the number of patients.")
    names = sorted(groups)
    np.random.default_rng(seed).shuffle(names)
    made: dict[str, list[Case]] = {}
    for fold in range(number):
        out = set(names[fold::number])
        made[f"training_fold{fold}"] = [case for name in names if name not in out for case in groups[name]]
        made[f"validation_fold{fold}"] = [case for name in names if name in out for case in groups[name]]
    return made
