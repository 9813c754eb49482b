# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Comparison of two groups of cases: Welch's t-test for each measure, with control of the false discovery rate."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import false_discovery_control, ttest_ind

from ..errors import InputError
from .run import counted

__all__ = ["Comparison", "compare_groups", "read_groups"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Second group against the first.

    Attributes:
        difference: of the means, ``[M]``.
        p: two-sided p-values, ``[M]``; 1 where neither group varies.
        adjusted: p-values after Benjamini and Hochberg: those below q hold at a false discovery rate of q.
    """

    difference: Array
    p: Array
    adjusted: Array


def read_groups(path: str | Path, cases: Sequence[str]) -> dict[str, list[int]]:
    """Read a CSV file with the columns ``case`` and ``group``.

    Args:
        path: the file; cases of it that were not analysed are left out.
        cases: names in the order of the data.

    Returns:
        Group → places in ``cases``; two groups in alphabetical order.

    Raises:
        InputError: the file cannot be read, a case has no group, or there are not two groups of two cases at least.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as stream:
            table = {row["case"].strip(): row["group"].strip() for row in csv.DictReader(stream)}
    except (OSError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: expected a CSV file with the columns case and group, found {type(error).__name__} ({error})."
        ) from error
    missing = [case for case in cases if not table.get(case)]
    if missing:
        found = f"{counted(len(missing), 'case')} without one, the first '{missing[0]}'"
        raise InputError(f"{path}: expected a group for each case, found {found}. Add the groups.")
    groups = {name: [i for i, case in enumerate(cases) if table[case] == name] for name in sorted(set(table.values()))}
    groups = {name: places for name, places in groups.items() if places}
    if len(groups) != 2 or min(len(places) for places in groups.values()) < 2:
        found = ", ".join(f"'{name}' ({len(places)})" for name, places in groups.items())
        raise InputError(f"{path}: expected two groups of at least two cases, found {found}. Correct the groups.")
    return groups


def compare_groups(values: Array, groups: dict[str, list[int]]) -> Comparison:
    """Compare two groups in M measures at once.

    Args:
        values: ``[N, M]``.
        groups: two groups, as `read_groups` gives them.
    """
    first, second = (values[places] for places in groups.values())
    constant = (first.std(axis=0) + second.std(axis=0)) <= 1e-12 * np.abs(values).max(initial=1.0)
    p = np.ones(values.shape[1])
    if (~constant).any():
        p[~constant] = ttest_ind(second[:, ~constant], first[:, ~constant], equal_var=False).pvalue
    return Comparison(second.mean(axis=0) - first.mean(axis=0), p, np.asarray(false_discovery_control(p)))
