# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The results to compare: which files they come from, and their scores over the cases that all of them have."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ..scores import SCORES, length_unit_of, read_metrics

__all__ = ["LABEL_MEAN", "Method", "Scores", "common_scores", "read_methods"]

LABEL_MEAN = "mean"
"""Name of the mean of a case over its labels, where there are several."""


@dataclass(frozen=True)
class Method:
    """One result of one evaluation.

    Attributes:
        name: what it is called in tables.
        source: name of the evaluation that it comes from.
        result: its name there: ``itn``, ``one_pass``, ``refine`` or another.
        rows: of `read_metrics`, for this result.
        failed: number of cases that could not be evaluated.
    """

    name: str
    source: str
    result: str
    rows: list[dict[str, Any]]
    failed: int = 0

    @property
    def cases(self) -> list[str]:
        """The names of the cases."""
        return list(dict.fromkeys(row["case"] for row in self.rows))


@dataclass(frozen=True)
class Scores:
    """Scores of all methods over the same cases.

    Attributes:
        methods: names, in the order given.
        labels: names; where there are several, `LABEL_MEAN` is the last.
        cases: names of the cases that every method has.
        values: metric → ``[methods, cases, labels]``, NaN for all methods where one has no number.
        notes: what was left out, in sentences.
        unit: of distances.
    """

    methods: list[str]
    labels: list[str]
    cases: list[str]
    values: dict[str, npt.NDArray[np.float64]]
    notes: list[str]
    unit: str = "mm"

    def of(self, metric: str, label: str) -> npt.NDArray[np.float64]:
        """The values ``[methods, n]`` of the cases in which this label has a number."""
        values = self.values[metric][:, :, self.labels.index(label)]
        return np.asarray(values[:, ~np.isnan(values[0])])


def read_methods(outputs: Sequence[str]) -> list[Method]:
    """Read evaluations.

    Args:
        outputs: each a folder that ``evaluate`` wrote, or a ``metrics.csv``. ``NAME=PATH`` names it, else it is called
            after the folder (of a file called otherwise than ``metrics.csv``, after the file). ``NAME:RESULT=PATH``
            takes one of its results and calls it NAME. Otherwise every result is taken and called ``NAME RESULT``.

    Returns:
        The methods, in the order given.

    Raises:
        InputError: a file cannot be read, lacks the result, or two methods have the same name.
    """
    methods = [method for output in outputs for method in _read_output(output)]
    names = [method.name for method in methods]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"two results are called '{twice}': give the folders names, as in full=PATH quick=PATH.")
    return methods


def _read_output(output: str) -> list[Method]:
    name, path = ("", output) if Path(output).exists() or "=" not in output else output.split("=", 1)
    name, _, wanted = name.partition(":")
    table = Path(path) / "metrics.csv" if Path(path).is_dir() else Path(path)
    source = name or (table.resolve().parent.name if table.name == "metrics.csv" else table.stem)
    rows = read_metrics(table)
    results = list(dict.fromkeys(row["result"] for row in rows))
    if not rows or (wanted and wanted not in results):
        found = ", ".join(results) or "no rows"
        raise InputError(f"{table}: expected {wanted or 'scores'}, found {found}. Choose another result or folder.")
    failed = _failed(table.with_name("summary.json"))
    return [
        Method(
            name=name if wanted else f"{source} {result}",
            source=source,
            result=result,
            rows=[row for row in rows if row["result"] == result],
            failed=failed,
        )
        for result in ([wanted] if wanted else results)
    ]


def _failed(summary: Path) -> int:
    """Number of failed cases; a table that was copied without its summary has none to tell."""
    try:
        return int(json.loads(summary.read_text(encoding="utf-8"))["failed"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def common_scores(methods: Sequence[Method]) -> Scores:
    """Bring the scores of all methods to the cases and labels that every one has.

    Args:
        methods: at least one.

    Returns:
        The scores and what was left out.

    Raises:
        InputError: there is no common case or label, or distances are in millimetres for one and in pixels for another.
    """
    units = {method.name: length_unit_of(method.rows) for method in methods}
    if len(set(units.values())) > 1:
        shown = ", ".join(f"{name} in {unit}" for name, unit in units.items())
        raise InputError(f"the results have distances in different units ({shown}). Evaluate with the same pixel_size.")
    tables = [{(row["case"], row["label"]): row for row in method.rows} for method in methods]
    cases, missing_cases = _common("case", methods)
    labels, missing_labels = _common("label", methods)
    values = {
        metric: np.array(
            [[[table.get((c, n), {}).get(metric, math.nan) for n in labels] for c in cases] for table in tables]
        )
        for metric in SCORES
    }
    for array in values.values():
        array[:, np.isnan(array).any(axis=0)] = math.nan
    undefined = int(np.isnan(values["dice"][0]).sum())
    notes = [*missing_cases, *missing_labels]
    if undefined:
        notes.append(
            f"{undefined} pairs of case and label are left out, since for some method the label is neither in the "
            "reference nor in the prediction; false alarms among them are counted per method."
        )
    if len(labels) > 1:
        values = {metric: np.dstack([array, _label_mean(array)]) for metric, array in values.items()}
        labels = [*labels, LABEL_MEAN]
    return Scores([method.name for method in methods], labels, cases, values, notes, units[methods[0].name])


def _common(column: str, methods: Sequence[Method]) -> tuple[list[str], list[str]]:
    """The entries of a column that all methods have, and a note on those that some lack."""
    entries = {method.name: dict.fromkeys(row[column] for row in method.rows) for method in methods}
    every = dict.fromkeys(entry for found in entries.values() for entry in found)
    common = [entry for entry in every if all(entry in found for found in entries.values())]
    numbers = ", ".join(f"{name} {len(found)}" for name, found in entries.items())
    if not common:
        raise InputError(f"the results have no {column} in common ({numbers}): compare results of the same data set.")
    left_out = len(every) - len(common)
    note = f"{left_out} of {len(every)} {column}s are left out, since not every method has them ({numbers})."
    return common, [note] if left_out else []


def _label_mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over the labels that have a number, NaN where none has: ``[methods, cases]``."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=2)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / known.sum(axis=2))
